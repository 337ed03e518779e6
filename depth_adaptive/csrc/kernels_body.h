// Included by every_level.h once per instruction set, with NATIVE_LEVEL (a namespace) and VECTOR_BYTES defined.
// No include guard on purpose; no lambdas and nothing from the standard library that would be inlined, since those
// would not be compiled for the instruction set.

namespace depth_adaptive {
namespace NATIVE_LEVEL {

#include "vectors.h"
#include "arithmetic.h"

// The sum of x[i] * y[i].
template <class T>
INLINE Acc<T> dot(int64_t n, const T* x, const T* y) {
  constexpr int64_t L = lanes<Acc<T>>();
  Vec<Acc<T>> sums = {};
  int64_t i = 0;
  for (; i + L <= n; i += L) sums = multiply_add(load(x + i), load(y + i), sums);
  if (i < n) sums = multiply_add(load_some(x + i, n - i), load_some(y + i, n - i), sums);
  return total(sums);
}

// N vectors of the sum over the places of weight * value, the sums staying in registers; `step` from place to place.
template <int N, class T>
INLINE void weighted_sum(int64_t count, const int64_t* places, const Acc<T>* weights, const T* values, int64_t step,
                         Acc<T> scale, T* out) {
  constexpr int64_t L = lanes<Acc<T>>();
  Vec<Acc<T>> sums[N];
  for (int n = 0; n < N; ++n) sums[n] = Vec<Acc<T>>{};
  for (int64_t t = 0; t < count; ++t) {
    if (places[t] < 0) continue;
    const Vec<Acc<T>> weight = spread(weights[t]);
    const T* value = values + places[t] * step;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[n] = multiply_add(weight, load(value + n * L), sums[n]);
  }
  for (int n = 0; n < N; ++n) store(out + n * L, sums[n] * scale);
}

// Likewise of fewer channels than a vector has.
template <class T>
INLINE void weighted_sum_some(int64_t count, const int64_t* places, const Acc<T>* weights, const T* values,
                              int64_t step, Acc<T> scale, T* out, int64_t channels) {
  Vec<Acc<T>> sums = {};
  for (int64_t t = 0; t < count; ++t)
    if (places[t] >= 0)
      sums = multiply_add(spread(weights[t]), load_some(values + places[t] * step, channels), sums);
  store_some(out, sums * scale, channels);
}

template <class T>
void attend(int64_t heads, int64_t width, int64_t count, const int64_t* places, const T* query, const T* memory,
            Acc<T>* scores, T* out) {
  using A = Acc<T>;
  constexpr int64_t L = lanes<A>();
  const int64_t dim = heads * width, step = 2 * dim;
  const A scale = 1 / std::sqrt((A)width);
  // A place at a time, so that its key is read once for all heads.
  for (int64_t t = 0; t < count; ++t) {
    if (t + 2 < count && places[t + 2] >= 0) {
      const T* next = memory + places[t + 2] * step;
      for (int64_t c = 0; c < dim; c += 64 / (int64_t)sizeof(T)) __builtin_prefetch(next + c);
    }
    const T* key = memory + places[t] * step;
    for (int64_t h = 0; h < heads; ++h)
      scores[h * count + t] =
          places[t] < 0 ? -(A)INFINITY : dot(width, query + h * width, key + h * width) * scale;
  }
  for (int64_t h = 0; h < heads; ++h) {
    A* row = scores + h * count;
    A most = -(A)INFINITY;
    for (int64_t t = 0; t < count; ++t) most = row[t] > most ? row[t] : most;
    if (most == -(A)INFINITY) most = 0;
    A sum = 0;
    for (int64_t t = 0; t < count; t += L) {
      const int64_t n = count - t < L ? count - t : L;
      store_some(row + t, exponential(load_some(row + t, n) - most), n);
    }
    for (int64_t t = 0; t < count; ++t) sum += row[t];
    const T* values = memory + dim + h * width;
    T* to = out + h * width;
    const A rest = sum == 0 ? 0 : 1 / sum;
    int64_t c = 0;
    for (; c + 4 * L <= width; c += 4 * L) weighted_sum<4>(count, places, row, values + c, step, rest, to + c);
    for (; c + L <= width; c += L) weighted_sum<1>(count, places, row, values + c, step, rest, to + c);
    if (c < width) weighted_sum_some(count, places, row, values + c, step, rest, to + c, width - c);
  }
}

template <class T>
const Kernels<T>& table(const T*) {
  static const Kernels<T> entries = {attend<T>};
  return entries;
}

}  // namespace NATIVE_LEVEL
}  // namespace depth_adaptive
