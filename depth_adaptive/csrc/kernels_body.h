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

// N vectors of the sum over the places of weight * value. The sums stay in registers; places are `step` apart.
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

// The same for fewer channels than a vector has.
template <class T>
INLINE void weighted_sum_some(int64_t count, const int64_t* places, const Acc<T>* weights, const T* values,
                              int64_t step, Acc<T> scale, T* out, int64_t channels) {
  Vec<Acc<T>> sums = {};
  for (int64_t t = 0; t < count; ++t)
    if (places[t] >= 0) sums = multiply_add(spread(weights[t]), load_some(values + places[t] * step, channels), sums);
  store_some(out, sums * scale, channels);
}

template <class T>
void attend(int64_t heads, int64_t width, int64_t count, const int64_t* places, const T* query, const T* memory,
            Acc<T>* scores, T* out) {
  using A = Acc<T>;
  constexpr int64_t L = lanes<A>();
  const int64_t dim = heads * width, step = 2 * dim;
  const A scale = 1 / std::sqrt((A)width);
  // Place by place, so that a key is read once for all heads.
  for (int64_t t = 0; t < count; ++t) {
    if (t + 2 < count && places[t + 2] >= 0) {
      const T* next = memory + places[t + 2] * step;
      for (int64_t c = 0; c < dim; c += 64 / (int64_t)sizeof(T)) __builtin_prefetch(next + c);
    }
    const T* key = memory + places[t] * step;
    for (int64_t h = 0; h < heads; ++h)
      scores[h * count + t] = places[t] < 0 ? -(A)INFINITY : dot(width, query + h * width, key + h * width) * scale;
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

template <class A>
INLINE A largest(Vec<A> v) {
  A lane[lanes<A>()];
  store(lane, v);
  A most = lane[0];
  for (int64_t l = 1; l < lanes<A>(); ++l) most = lane[l] > most ? lane[l] : most;
  return most;
}

template <class T>
void cross_entropy(int64_t count, int64_t target, Acc<T> kept, Acc<T> less, bool gradient, T* logits, Acc<T>* scratch,
                   Acc<T>* likelihood, Acc<T>* total_likelihood, bool* right) {
  using A = Acc<T>;
  using V = Vec<A>;
  constexpr int64_t L = lanes<A>();
  const int64_t whole = count / L * L, rest = count - whole;
  V most = spread(-(A)INFINITY), sums = {};
  for (int64_t c = 0; c < whole; c += L) {
    const V x = load(logits + c);
    store(scratch + c, x);
    most = x > most ? x : most;
    sums += x;
  }
  A high = largest<A>(most), sum = total(sums);
  if (rest) {
    const V x = load_some(logits + whole, rest);
    store_some(scratch + whole, x, rest);
    for (int64_t c = whole; c < count; ++c) {
      high = scratch[c] > high ? scratch[c] : high;
      sum += scratch[c];
    }
  }
  const A chosen = scratch[target];
  *right = chosen == high;
  for (int64_t c = 0; *right && c < target; ++c) *right = scratch[c] != high;
  V powers = {};
  for (int64_t c = 0; c < whole; c += L) {
    const V y = exponential(load(scratch + c) - high);
    store(scratch + c, y);
    powers += y;
  }
  A power = total(powers);
  if (rest) {
    store_some(scratch + whole, exponential(load_some(scratch + whole, rest) - high), rest);
    for (int64_t c = whole; c < count; ++c) power += scratch[c];
  }
  const A log_sum = high + std::log(power);
  *likelihood = chosen - log_sum;
  *total_likelihood = sum - (A)count * log_sum;
  if (!gradient) return;
  const A part = (kept + (A)count * less) / power;  // times the sum of all weights
  const V scale = spread(part), lower = spread(-less);
  // The target is computed apart, so that in bfloat16 its difference is rounded once.
  const A at_target = scratch[target] * part - less - kept;
  for (int64_t c = 0; c < whole; c += L) store(logits + c, multiply_add(load(scratch + c), scale, lower));
  if (rest) store_some(logits + whole, multiply_add(load_some(scratch + whole, rest), scale, lower), rest);
  store_some(logits + target, spread(at_target), 1);
}

template <class T>
Acc<T> top_probability(int64_t count, const T* logits) {
  using A = Acc<T>;
  using V = Vec<A>;
  constexpr int64_t L = lanes<A>();
  const int64_t whole = count / L * L, rest = count - whole;
  V most = spread(-(A)INFINITY), powers = {};
  for (int64_t c = 0; c < whole; c += L) {
    const V x = load(logits + c);
    most = x > most ? x : most;
  }
  A some[L], high = largest<A>(most);
  if (rest) {
    store_some(some, load_some(logits + whole, rest), rest);
    for (int64_t l = 0; l < rest; ++l) high = some[l] > high ? some[l] : high;
  }
  for (int64_t c = 0; c < whole; c += L) powers += exponential(load(logits + c) - high);
  A power = total(powers);
  if (rest) {
    store_some(some, exponential(load_some(logits + whole, rest) - high), rest);
    for (int64_t l = 0; l < rest; ++l) power += some[l];
  }
  return 1 / power;
}

template <class T>
const Kernels<T>& table(const T*) {
  static const Kernels<T> entries = {attend<T>, cross_entropy<T>, top_probability<T>};
  return entries;
}

}  // namespace NATIVE_LEVEL
}  // namespace depth_adaptive
