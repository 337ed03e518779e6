// The inner loops of memory_layers' CPU operators: one thread's work on plain pointers, without PyTorch.
//
// Axes: N sub-keys per half, K selected slots, V row dimension.
// Every loop exists once per number format and instruction set; `kernels<T>(level)` hands out a table of them.
#pragma once

#include <cstdint>

#include "adam.h"
#include "formats.h"

namespace memory_layers {

using native::Acc;
using native::bfloat16;
using native::Level;

// An integer of A's size.
template <class A>
struct Integer {
  using type = int32_t;
};
template <>
struct Integer<double> {
  using type = int64_t;
};
template <class A>
using Int = typename Integer<A>::type;

// Elements that loops may read and write beyond the end of an array of SelectMemory.
constexpr int64_t kSlack = 64;

// Scratch memory of one thread for a selection; every array is 64-byte aligned and longer by kSlack than stated.
template <class A>
struct SelectMemory {
  using I = Int<A>;
  A* row;       // N
  A* maxima;    // N
  A* values;    // max(N, pairs(K)): candidates
  I* places;    // as values
  A* sorted;    // as values
  I* order;     // as values
  I* ranks;     // as values
  A* best[2];   // min(K + 1, N): the best of each half
  I* index[2];  // as best
};

// A list of rows to be read: row[p] (in rows of `base`) for p < listed, of which the first `count` are used; the others
// will be needed next, and are prefetched.
struct RowList {
  const int64_t* row;
  int64_t count;
  int64_t listed;
};

// Pairs of ranks (a, b) with (a + 1)(b + 1) <= k.
inline int64_t pairs(int64_t k) {
  int64_t sum = 0;
  for (int64_t a = 1; a <= k; ++a) sum += k / a;
  return sum;
}

template <class T>
struct Kernels {
  using A = Acc<T>;

  // The k best sums of two rows of N half scores; 1 <= k <= n. False: ties at the k-th place, infinities or NaN require
  // an exhaustive search, and `*bound` is then a lower bound of the k-th best value (NaN where none is known).
  // Only in Kernels<float> and Kernels<double>.
  bool (*select)(int64_t n, int64_t k, const A* first, const A* second, const SelectMemory<A>&, A* scores,
                 int64_t* slots, A* bound);
  // In place, over k scores in descending order. Only in Kernels<float> and Kernels<double>.
  void (*softmax)(int64_t k, A* scores);

  // sum[v] = sum over p < list.count, in this order, of weights[p] * base[list.row[p]][v].
  void (*sum_rows)(int64_t dim, const T* base, RowList list, const A* weights, A* sum);
  // products[p] = dot product of `vector` (V) and base[list.row[p]], p < list.count.
  void (*dot_rows)(int64_t dim, const T* base, RowList list, const A* vector, A* products);
  // sum[v] += weight * row[v].
  void (*add_row)(int64_t dim, A weight, const A* row, A* sum);
  void (*narrow)(int64_t dim, const A* from, T* to);
  double (*squared_norm)(int64_t dim, const A* row);
  // One row; master null: the values themselves are updated.
  void (*adam)(int64_t dim, const AdamNumbers<A>&, const A* gradient, T* values, A* exp_avg, A* exp_avg_sq, A* master);
};

// The loops for `level`, or for the best level below it that this build has.
template <class T>
const Kernels<T>& kernels(Level level);

}  // namespace memory_layers
