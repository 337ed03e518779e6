// The arguments of each kernel. Pointers are to contiguous tensors unless strides stand beside them.
//
// Axes: T tokens, H heads, N sub-keys per half, K selected slots, V columns of the table, bag = rows read per token,
// pairs = T·bag, U distinct slots. S is the number format of the table, Wide<S> that of sums.
#pragma once

#include <cstdint>

#include "../adam.h"

#ifdef MEMORY_LAYERS_SIMT
#include "simt.h"
#else
namespace memory_layers::cuda {
template <class T>
using Global = T*;  // memory of the device
}  // namespace memory_layers::cuda
#endif

namespace memory_layers::cuda {

constexpr int kMaxK = 128;
constexpr int kMaxN = 4096;

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

template <class S>
struct Accumulation {
  using type = float;
};
template <>
struct Accumulation<double> {
  using type = double;
};
template <class S>
using Wide = typename Accumulation<S>::type;

// S: float or double.
template <class S>
struct Select {
  Global<const S> half_scores;  // (T, H, 2, N), N innermost
  int64_t token_stride, head_stride, half_stride;
  Global<S> scores;       // (T, H, K): the scores or their softmax
  Global<int64_t> slots;  // (T, H, K)
  int64_t rows;           // T·H
  int heads, n, k;
};

template <class S>
struct SelectBackward {
  Global<const S> grad;         // (T, H, K)
  Global<const int64_t> slots;  // (T, H, K)
  Global<S> half_grad;          // (T, H, 2, N)
  int64_t rows;                 // T·H
  int n, k;
};

template <class S>
struct Bag {
  Global<const S> values;         // (n_slots, V)
  Global<const int64_t> slots;    // (T, bag)
  Global<const Wide<S>> weights;  // (T, bag)
  Global<S> output;               // (T, V)
  int64_t tokens, n_slots;
  int bag, dim;
};

template <class S>
struct BagWeightsBackward {
  Global<const Wide<S>> grad;    // (T, V)
  Global<const S> values;        // (n_slots, V)
  Global<const int64_t> slots;   // (T, bag)
  Global<Wide<S>> weights_grad;  // (T, bag)
  int64_t tokens, n_slots;
  int bag, dim;
};

// The factors of the gradient of a table, sorted. A: float or double.
template <class A>
struct SortedPairs {
  Global<const int64_t> slots;      // (pairs,), ascending
  Global<const int32_t> positions;  // (pairs,): where the slot stood, t·bag + b; ascending for one slot
  Global<const A> weights;          // (T, bag): by position
  Global<const A> grad;             // (T, V)
  int64_t pairs, n_slots;
  int bag, dim;
};

template <class A>
struct SquaredNorm {
  Global<double> norms;  // (pairs,): of each row, where its slot comes first; the others keep what they are
};

template <class S>
struct Rows {
  Global<const int64_t> ranks;  // (pairs,): how many distinct slots come before
  Global<S> rows;               // (U, V)
};

template <class S>
struct Adam {
  Global<S> values;                             // (n_slots, V)
  Global<Wide<S>> exp_avg, exp_avg_sq, master;  // (n_slots, V)
  bool has_master;
  AdamNumbers<Wide<S>> numbers;
};

}  // namespace memory_layers::cuda
