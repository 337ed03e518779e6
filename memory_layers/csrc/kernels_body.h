// Included by every_level.h once per instruction set, with NATIVE_LEVEL (a namespace) and VECTOR_BYTES defined.
// No include guard on purpose; no lambdas and nothing from the standard library that would be inlined, since those
// would not be compiled for the instruction set.

namespace memory_layers {
namespace NATIVE_LEVEL {

#include "vectors.h"
#include "arithmetic.h"

INLINE float largest_lane(f32v v) {
#if VECTOR_BYTES == 64
  return _mm512_reduce_max_ps((__m512)v);
#else
  float most = v[0];
  for (int64_t l = 1; l < lanes<float>(); ++l) most = v[l] > most ? v[l] : most;
  return most;
#endif
}

INLINE double largest_lane(f64v v) {
  double most = v[0];
  for (int64_t l = 1; l < lanes<double>(); ++l) most = v[l] > most ? v[l] : most;
  return most;
}

INLINE f32v square_root(f32v v) {
#if VECTOR_BYTES == 64
  return (f32v)_mm512_sqrt_ps((__m512)v);
#elif VECTOR_BYTES == 32
  return (f32v)_mm256_sqrt_ps((__m256)v);
#elif defined(NATIVE_X86)
  return (f32v)_mm_sqrt_ps((__m128)v);
#elif defined(__aarch64__)
  return (f32v)vsqrtq_f32((float32x4_t)v);
#else
  for (int64_t l = 0; l < lanes<float>(); ++l) v[l] = std::sqrt(v[l]);
  return v;
#endif
}

INLINE f64v square_root(f64v v) {
#if VECTOR_BYTES == 64
  return (f64v)_mm512_sqrt_pd((__m512d)v);
#elif VECTOR_BYTES == 32
  return (f64v)_mm256_sqrt_pd((__m256d)v);
#elif defined(NATIVE_X86)
  return (f64v)_mm_sqrt_pd((__m128d)v);
#elif defined(__aarch64__)
  return (f64v)vsqrtq_f64((float64x2_t)v);
#else
  for (int64_t l = 0; l < lanes<double>(); ++l) v[l] = std::sqrt(v[l]);
  return v;
#endif
}

// One bit per lane: v >= limit.
INLINE uint32_t at_least(f32v v, f32v limit) {
#if VECTOR_BYTES == 64
  return _mm512_cmp_ps_mask((__m512)v, (__m512)limit, _CMP_GE_OQ);
#elif VECTOR_BYTES == 32
  return _mm256_movemask_ps((__m256)(v >= limit));
#elif defined(NATIVE_X86)
  return _mm_movemask_ps((__m128)(v >= limit));
#elif defined(__aarch64__)
  const uint32x4_t bits = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32((uint32x4_t)(v >= limit), bits));
#else
  uint32_t mask = 0;
  for (int64_t l = 0; l < lanes<float>(); ++l) mask |= (uint32_t)(v[l] >= limit[l]) << l;
  return mask;
#endif
}

INLINE uint32_t at_least(f64v v, f64v limit) {
#if VECTOR_BYTES == 64
  return _mm512_cmp_pd_mask((__m512d)v, (__m512d)limit, _CMP_GE_OQ);
#else
  uint32_t mask = 0;
  for (int64_t l = 0; l < lanes<double>(); ++l) mask |= (uint32_t)(v[l] >= limit[l]) << l;
  return mask;
#endif
}

// Appends the lanes of `mask` to values and places, in their order; writes up to a vector. Returns how many.
INLINE int64_t append(float* values, int32_t* places, f32v v, i32v place, uint32_t mask) {
#if VECTOR_BYTES == 64
  // Into registers first: compressing to memory directly is very slow on some processors. Most often few lanes are
  // left, and short stores seldom cross a cache line.
  const __m512 kept = _mm512_maskz_compress_ps((__mmask16)mask, (__m512)v);
  const __m512i kept_places = _mm512_maskz_compress_epi32((__mmask16)mask, (__m512i)place);
  const int64_t n = __builtin_popcount(mask);
  if (__builtin_expect(n > 4, 0)) {
    store(values, kept);
    store(places, kept_places);
  } else {
    store(values, _mm512_castps512_ps128(kept));
    store(places, _mm512_castsi512_si128(kept_places));
  }
  return n;
#else
  int64_t n = 0;
  for (; mask; mask &= mask - 1, ++n) {
    const int lane = __builtin_ctz(mask);
    values[n] = v[lane];
    places[n] = place[lane];
  }
  return n;
#endif
}

INLINE int64_t append(double* values, int64_t* places, f64v v, i64v place, uint32_t mask) {
  int64_t n = 0;
  for (; mask; mask &= mask - 1, ++n) {
    const int lane = __builtin_ctz(mask);
    values[n] = v[lane];
    places[n] = place[lane];
  }
  return n;
}

// count + (a > b), lane by lane.
INLINE i32v count_above(i32v count, f32v a, f32v b) {
#if VECTOR_BYTES == 64
  return (i32v)_mm512_mask_add_epi32((__m512i)count, _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ),
                                     (__m512i)count, _mm512_set1_epi32(1));
#else
  return count - (a > b);
#endif
}

INLINE i64v count_above(i64v count, f64v a, f64v b) { return count - (a > b); }

INLINE i32v count_at_least(i32v count, f32v a, f32v b) {
#if VECTOR_BYTES == 64
  return (i32v)_mm512_mask_add_epi32((__m512i)count, _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ),
                                     (__m512i)count, _mm512_set1_epi32(1));
#else
  return count - (a >= b);
#endif
}

INLINE i64v count_at_least(i64v count, f64v a, f64v b) { return count - (a >= b); }

template <class A>
INLINE IntVec<A> lane_numbers() {
  IntVec<A> numbers;
  for (int64_t l = 0; l < lanes<A>(); ++l) numbers[l] = l;
  return numbers;
}

// ---- selection -----------------------------------------------------------------------------------------------------

// The largest finite number.
INLINE float largest(const float*) { return __FLT_MAX__; }
INLINE double largest(const double*) { return __DBL_MAX__; }

// Midway between two finite numbers as bit patterns, so that any range is halved in few steps.
INLINE float bit_middle(float a, float b) {
  int32_t i, j;
  std::memcpy(&i, &a, sizeof i);
  std::memcpy(&j, &b, sizeof j);
  i ^= (i >> 31) & 0x7fffffff;
  j ^= (j >> 31) & 0x7fffffff;
  int32_t m = (i & j) + ((i ^ j) >> 1);
  m ^= (m >> 31) & 0x7fffffff;
  std::memcpy(&a, &m, sizeof a);
  return a;
}

INLINE double bit_middle(double a, double b) {
  int64_t i, j;
  std::memcpy(&i, &a, sizeof i);
  std::memcpy(&j, &b, sizeof j);
  i ^= (i >> 63) & 0x7fffffffffffffff;
  j ^= (j >> 63) & 0x7fffffffffffffff;
  int64_t m = (i & j) + ((i ^ j) >> 1);
  m ^= (m >> 63) & 0x7fffffffffffffff;
  std::memcpy(&a, &m, sizeof a);
  return a;
}

template <class A>
INLINE int64_t count_reaching(const A* x, int64_t n, A limit) {
  IntVec<A> counts = {};
  for (int64_t i = 0; i < n; i += lanes<A>()) counts = count_at_least(counts, load(x + i), spread(limit));
  return total(counts);
}

// A number that at least `wanted` of x (n, whole vectors, finite) reach, and not many more.
template <class A>
A threshold(const A* x, int64_t n, int64_t wanted) {
  A least = x[0], most = x[0];
  for (int64_t i = 1; i < n; ++i) {
    least = x[i] < least ? x[i] : least;
    most = x[i] > most ? x[i] : most;
  }
  const int64_t enough = wanted + wanted / 8 + 1;
  for (int step = 0; step < 64; ++step) {
    // Halving the range of values is quick on ordinary scores, halving the bit patterns on any.
    const A middle = step < 6 || step % 2 ? least / 2 + most / 2 : bit_middle(least, most);
    if (!(middle > least && middle < most)) break;
    const int64_t count = count_reaching(x, n, middle);
    if (count < wanted) {
      most = middle;
    } else {
      least = middle;
      if (count <= enough) break;
    }
  }
  return least;
}

// Likewise, the best of a few of x, in one pass without branches; minus infinity if none is reached by `wanted`. Where
// the order of x is no accident, far more than `wanted` may reach it.
template <class A>
INLINE A sampled_threshold(const A* x, int64_t n, int64_t wanted) {
  constexpr int64_t L = lanes<A>(), Q = 64 / VECTOR_BYTES;
  if (n < Q * L) return -(A)__builtin_inf();
  Vec<A> samples[Q];
  IntVec<A> counts[Q] = {};
  for (int64_t q = 0; q < Q; ++q) samples[q] = load(x + q * L);
  for (int64_t i = 0; i < n; ++i) {
    const Vec<A> v = spread(x[i]);
    for (int64_t q = 0; q < Q; ++q) counts[q] = count_at_least(counts[q], v, samples[q]);
  }
  Vec<A> best = spread(-(A)__builtin_inf());
  for (int64_t q = 0; q < Q; ++q) best = ((counts[q] >= (Int<A>)wanted) & (samples[q] > best)) ? samples[q] : best;
  return largest_lane(best);
}

// Sorts up to kBlock values in descending order, equal ones in the order given: each one's rank is counted.
constexpr int64_t kBlock = 64;

template <class A>
void sort_block(int64_t n, const A* values, const Int<A>* places, Int<A>* ranks, A* sorted, Int<A>* order) {
  constexpr int64_t L = lanes<A>();
  const IntVec<A> lane = lane_numbers<A>();
  for (int64_t q = 0; q < n; q += L) {
    const Vec<A> v = load(values + q);  // beyond n anything: not used
    const int64_t end = q + L < n ? q + L : n;
    IntVec<A> rank = {}, later = {};
    for (int64_t i = 0; i < q; ++i) rank = count_at_least(rank, spread(values[i]), v);
    for (int64_t i = q; i < end; ++i) {
      const Vec<A> x = spread(values[i]);
      rank -= (x > v) | ((x == v) & (lane > (Int<A>)(i - q)));
    }
    for (int64_t i = end; i < n; ++i) later = count_above(later, spread(values[i]), v);
    store(ranks + q, rank + later);
  }
  for (int64_t i = 0; i < n; ++i) {
    sorted[ranks[i]] = values[i];
    order[ranks[i]] = places[i];
  }
}

// ranks[q * L ..] of the Q vectors `mine`: how many of the n values are greater. Returns the sum of the ranks.
template <int Q, class A>
INLINE IntVec<A> count_greater(int64_t n, const A* values, const A* mine, Int<A>* ranks) {
  constexpr int64_t L = lanes<A>();
  Vec<A> v[Q];
  IntVec<A> rank[Q] = {};
  for (int q = 0; q < Q; ++q) v[q] = load(mine + q * L);
  for (int64_t i = 0; i < n; i += 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec<A> x = spread(values[i + j]);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) rank[q] = count_above(rank[q], x, v[q]);
    }
  }
  IntVec<A> sum = {};
  for (int q = 0; q < Q; ++q) {
    store(ranks + q * L, rank[q]);
    sum += rank[q];
  }
  return sum;
}

// As sort_block if all n <= kFew values differ; else returns false. Without branches that depend on the values.
constexpr int64_t kFew = 128;

template <class A>
bool sort_different(int64_t n, A* values, const Int<A>* places, Int<A>* ranks, A* sorted, Int<A>* order) {
  constexpr int64_t L = lanes<A>();
  const int64_t whole = (n + L - 1) / L * L;
  const Vec<A> lowest = spread(-(A)__builtin_inf());
  for (int64_t i = 0; i < 4 + L; i += L) store(values + n + i, lowest);
  IntVec<A> sum = {};
  for (int64_t q = 0; q < whole; q += 4 * L) {
    switch ((whole - q) / L) {
      case 1:
        sum += count_greater<1, A>(n, values, values + q, ranks + q);
        break;
      case 2:
        sum += count_greater<2, A>(n, values, values + q, ranks + q);
        break;
      case 3:
        sum += count_greater<3, A>(n, values, values + q, ranks + q);
        break;
      default:
        sum += count_greater<4, A>(n, values, values + q, ranks + q);
        break;
    }
  }
  // 0 + ... + n - 1, and n for each of the fillers; a pair of equal values lacks one.
  if (total(sum) != n * (n - 1) / 2 + (whole - n) * n) return false;
  for (int64_t i = 0; i < n; i += 4) {  // fillers go to place n
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const int64_t rank = i + j < whole ? ranks[i + j] : n;
      sorted[rank] = values[i + j];
      order[rank] = places[i + j];
    }
  }
  return true;
}

// Sorts n values and their places in descending order, equal ones in the order given; the result lies in *values and
// *places, which may have changed places with *sorted and *order. Returns whether all are known to differ.
template <class A>
bool sort_descending(int64_t n, A** values, Int<A>** places, Int<A>* ranks, A** sorted, Int<A>** order) {
  if (n <= kFew && sort_different<A>(n, *values, *places, ranks, *sorted, *order)) {
    A* const x = *sorted;
    Int<A>* const p = *order;
    *sorted = *values;
    *order = *places;
    *values = x;
    *places = p;
    return true;
  }
  for (int64_t start = 0; start < n; start += kBlock)
    sort_block<A>(n - start < kBlock ? n - start : kBlock, *values + start, *places + start, ranks, *sorted + start,
                  *order + start);
  for (int64_t width = kBlock;; width *= 2) {
    A* const x = *sorted;
    Int<A>* const p = *order;
    *sorted = *values;
    *order = *places;
    *values = x;
    *places = p;
    if (width >= n) return false;
    A* to = *sorted;
    Int<A>* to_place = *order;
    for (int64_t start = 0; start < n; start += 2 * width) {
      const int64_t middle = start + width < n ? start + width : n, end = start + 2 * width < n ? start + 2 * width : n;
      int64_t i = start, j = middle;
      for (int64_t out = start; out < end; ++out) {
        const bool second = i == middle || (j < end && x[j] > x[i]);
        const int64_t from = second ? j : i;
        to[out] = x[from];
        to_place[out] = p[from];
        (second ? j : i) += 1;
      }
    }
  }
}

// The `kept` best of a row of N scores in descending order: their values and indices. False if not all are finite.
template <class A>
bool best_of_half(int64_t n, int64_t kept, const A* row, const SelectMemory<A>& memory, A* best, Int<A>* index) {
  constexpr int64_t L = lanes<A>();
  const int64_t whole = (n + L - 1) / L * L;
  if (whole != n) {  // fill up the last vector with what is never better
    std::memcpy(memory.row, row, n * sizeof(A));
    store(memory.row + n, spread(-largest(row)));
    row = memory.row;
  }
  // The maximum of each of `groups` groups: whatever `kept` of them reach, `kept` scores reach, and if groups are few
  // but more than `kept`, not many more do. Four vectors at a time, so that none waits for the one before.
  int64_t groups = (2 * kept + 4 * L - 1) / (4 * L) * (4 * L);
  if (groups < 64) groups = 64;
  const A* maxima = row;
  IntVec<A> odd = {};  // stays zero unless there is an infinity or NaN
  if (2 * groups > whole) {
    groups = whole;
    for (int64_t i = 0; i < whole; i += L) odd |= (IntVec<A>)(load(row + i) - load(row + i));
  } else {
    for (int64_t g = 0; g < groups; g += 4 * L) {
      Vec<A> most[4];
      for (int q = 0; q < 4; ++q) most[q] = spread(-largest(row));
      for (int64_t i = g; i < whole; i += groups) {
        const int64_t vectors = whole - i < 4 * L ? (whole - i) / L : 4;
        if (vectors == 4) {
#pragma GCC unroll 4
          for (int q = 0; q < 4; ++q) {
            const Vec<A> v = load(row + i + q * L);
            odd |= (IntVec<A>)(v - v);
            most[q] = v > most[q] ? v : most[q];
          }
        } else {
          for (int64_t q = 0; q < vectors; ++q) {
            const Vec<A> v = load(row + i + q * L);
            odd |= (IntVec<A>)(v - v);
            most[q] = v > most[q] ? v : most[q];
          }
        }
      }
      for (int q = 0; q < 4; ++q) store(memory.maxima + g + q * L, most[q]);
    }
    maxima = memory.maxima;
  }
  bool ordinary = true;
  for (int64_t l = 0; l < L; ++l) ordinary &= odd[l] == 0;
  if (!ordinary) return false;
  A limit = sampled_threshold<A>(maxima, groups, kept);
  A* values = memory.values;
  Int<A>* places = memory.places;
  int64_t count;
  for (bool sampled = true;; sampled = false) {
    count = 0;
    IntVec<A> place = lane_numbers<A>();
    for (int64_t i = 0; i < whole; i += L, place += (Int<A>)L) {
      const Vec<A> v = load(row + i);
      count += append(values + count, places + count, v, place, at_least(v, spread(limit)));
    }
    if (!sampled || count <= 2 * kept + 32) break;
    limit = threshold<A>(maxima, groups, kept);
  }
  A* sorted = memory.sorted;
  Int<A>* order = memory.order;
  sort_descending<A>(count, &values, &places, memory.ranks, &sorted, &order);
  std::memcpy(best, values, kept * sizeof(A));
  std::memcpy(index, places, kept * sizeof(Int<A>));
  return true;
}

// Why this is exact, ties and roundings included: reference/selection.py, _select. The border is the least pairs of
// ranks beyond (a + 1)(b + 1) <= k; a pair on it is no better than k others at least that are not beyond, so its sum
// bounds the k-th best from below; and if the k-th best is better than all of the border, it is better than all that
// lies beyond.
template <class A>
bool select(int64_t n, int64_t k, const A* first, const A* second, const SelectMemory<A>& memory, A* scores,
            int64_t* slots, A* bound) {
  typedef Int<A> I;
  constexpr int64_t L = lanes<A>();
  const int64_t kept = k < n ? k + 1 : n;
  *bound = (A)__builtin_nan("");
  const A* halves[2] = {first, second};
  for (int h = 0; h < 2; ++h)
    if (!best_of_half<A>(n, kept, halves[h], memory, memory.best[h], memory.index[h])) return false;
  const A *x = memory.best[0], *y = memory.best[1];
  const I *ix = memory.index[0], *iy = memory.index[1];
  A limit = -(A)__builtin_inf();
  for (int64_t a = 0, b = k; a < kept; a = k / b, b = k / (a + 1)) {
    if (b < kept) {
      const A sum = x[a] + y[b];
      limit = sum > limit ? sum : limit;
    }
    if (b == 0) break;
  }
  // The pairs not beyond that can win, by the lesser rank m: (m, b) with b >= m, then (a, m) with a > m.
  A* values = memory.values;
  I* places = memory.places;
  const Vec<A> limits = spread(limit);
  int64_t count = 0;
  for (int64_t m = 0; (m + 1) * (m + 1) <= k; ++m) {
    const int64_t end = k / (m + 1);
    const I row = ix[m] * (I)n, column = iy[m];
    for (int64_t b = m; b < end; b += L) {
      const Vec<A> sum = x[m] + load(y + b);
      uint32_t mask = at_least(sum, limits);
      if (end - b < L) mask &= (1u << (end - b)) - 1;
      count += append(values + count, places + count, sum, row + load(iy + b), mask);
    }
    for (int64_t a = m + 1; a < end; a += L) {
      const Vec<A> sum = load(x + a) + y[m];
      uint32_t mask = at_least(sum, limits);
      if (end - a < L) mask &= (1u << (end - a)) - 1;
      count += append(values + count, places + count, sum, load(ix + a) * (I)n + column, mask);
    }
  }
  A* sorted = memory.sorted;
  I* order = memory.order;
  const bool different = sort_descending<A>(count, &values, &places, memory.ranks, &sorted, &order);
  *bound = values[k - 1];
  if (!(values[k - 1] > limit)) return false;
  // Equal sums go by slot.
  for (int64_t i = 1; i < count && !different; ++i) {
    if (values[i] != values[i - 1]) continue;
    const A value = values[i];
    const I place = places[i];
    int64_t j = i;
    for (; j > 0 && values[j - 1] == value && places[j - 1] > place; --j) {
      values[j] = values[j - 1];  // -0 and +0 are equal, and stay with their slots
      places[j] = places[j - 1];
    }
    values[j] = value;
    places[j] = place;
  }
  for (int64_t i = 0; i < k; ++i) {
    scores[i] = values[i];
    slots[i] = places[i];
  }
  return true;
}

template <class A>
void softmax(int64_t k, A* scores) {
  constexpr int64_t L = lanes<A>();
  const int64_t whole = k / L * L, rest = k - whole;
  const A most = scores[0];
  Vec<A> sums = {};
  for (int64_t i = 0; i < whole; i += L) {
    const Vec<A> e = exponential(load(scores + i) - most);
    store(scores + i, e);
    sums += e;
  }
  A sum = total(sums);
  if (rest) {
    const Vec<A> e = exponential(load_some(scores + whole, rest) - most);
    store_some(scores + whole, e, rest);
    for (int64_t i = whole; i < k; ++i) sum += scores[i];
  }
  const A factor = 1 / sum;
  for (int64_t i = 0; i < k; ++i) scores[i] *= factor;
}

// ---- rows ----------------------------------------------------------------------------------------------------------

// The number of rows to prefetch: about 12 KiB, at least four.
template <class T>
INLINE int64_t rows_ahead(int64_t dim) {
  const int64_t rows = (12 << 10) / (dim * (int64_t)sizeof(T) + 1);
  return rows < 4 ? 4 : rows > 64 ? 64 : rows;
}

// The next R rows of a sum, and a prefetch of R that come later; `fresh`: the sum starts here.
template <int R, class T>
INLINE void sum_some(int64_t dim, const T* const* rows, const T* const* later, const Acc<T>* weights, bool fresh,
                     Acc<T>* sum) {
  typedef Acc<T> A;
  constexpr int64_t L = lanes<A>(), line = 64 / sizeof(T);
  Vec<A> w[R];
  for (int r = 0; r < R; ++r) w[r] = spread(weights[r]);
  const int64_t whole = dim / L * L, rest = dim - whole;
  for (int64_t v = 0; v < whole; v += L) {
    if (L >= line || v % line == 0)
      for (int r = 0; r < R; ++r) __builtin_prefetch(later[r] + v, 0, 2);
    Vec<A> s = fresh ? load(rows[0] + v) * w[0] : multiply_add(load(rows[0] + v), w[0], load(sum + v));
#pragma GCC unroll 4
    for (int r = 1; r < R; ++r) s = multiply_add(load(rows[r] + v), w[r], s);
    store(sum + v, s);
  }
  if (rest) {
    Vec<A> s = load_some(rows[0] + whole, rest) * w[0];
    if (!fresh) s = multiply_add(load_some(rows[0] + whole, rest), w[0], load_some(sum + whole, rest));
    for (int r = 1; r < R; ++r) s = multiply_add(load_some(rows[r] + whole, rest), w[r], s);
    store_some(sum + whole, s, rest);
  }
}

template <class T>
INLINE const T* row_at(int64_t dim, const T* base, const RowList& list, int64_t p) {
  return base + list.row[p < list.listed ? p : list.listed - 1] * dim;
}

template <class T>
void sum_rows(int64_t dim, const T* base, RowList list, const Acc<T>* weights, Acc<T>* sum) {
  if (list.count == 0) std::memset(sum, 0, dim * sizeof(Acc<T>));
  const int64_t ahead = rows_ahead<T>(dim);
  const T *rows[4], *later[4];
  for (int64_t p = 0; p < list.count;) {
    const int64_t left = list.count - p, taken = left < 4 ? left : 4;
    for (int64_t r = 0; r < taken; ++r) {
      rows[r] = base + list.row[p + r] * dim;
      later[r] = row_at(dim, base, list, p + r + ahead);
    }
    switch (taken) {
      case 1:
        sum_some<1, T>(dim, rows, later, weights + p, p == 0, sum);
        break;
      case 2:
        sum_some<2, T>(dim, rows, later, weights + p, p == 0, sum);
        break;
      case 3:
        sum_some<3, T>(dim, rows, later, weights + p, p == 0, sum);
        break;
      default:
        sum_some<4, T>(dim, rows, later, weights + p, p == 0, sum);
        break;
    }
    p += taken;
  }
}

template <int R, class T>
INLINE void dot_some(int64_t dim, const T* const* rows, const T* const* later, const Acc<T>* vector, Acc<T>* products) {
  typedef Acc<T> A;
  constexpr int64_t L = lanes<A>(), line = 64 / sizeof(T);
  Vec<A> s[R];
  for (int r = 0; r < R; ++r) s[r] = Vec<A>{};
  const int64_t whole = dim / L * L, rest = dim - whole;
  for (int64_t v = 0; v < whole; v += L) {
    if (L >= line || v % line == 0)
      for (int r = 0; r < R; ++r) __builtin_prefetch(later[r] + v, 0, 2);
    const Vec<A> g = load(vector + v);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) s[r] = multiply_add(load(rows[r] + v), g, s[r]);
  }
  if (rest) {
    const Vec<A> g = load_some(vector + whole, rest);
    for (int r = 0; r < R; ++r) s[r] = multiply_add(load_some(rows[r] + whole, rest), g, s[r]);
  }
  for (int r = 0; r < R; ++r) products[r] = total(s[r]);
}

template <class T>
void dot_rows(int64_t dim, const T* base, RowList list, const Acc<T>* vector, Acc<T>* products) {
  const int64_t ahead = rows_ahead<T>(dim);
  const T *rows[4], *later[4];
  for (int64_t p = 0; p < list.count;) {
    const int64_t left = list.count - p, taken = left < 4 ? 1 : 4;
    for (int64_t r = 0; r < taken; ++r) {
      rows[r] = base + list.row[p + r] * dim;
      later[r] = row_at(dim, base, list, p + r + ahead);
    }
    if (taken == 4)
      dot_some<4, T>(dim, rows, later, vector, products + p);
    else
      dot_some<1, T>(dim, rows, later, vector, products + p);
    p += taken;
  }
}

template <class A>
void add_row(int64_t dim, A weight, const A* row, A* sum) {
  constexpr int64_t L = lanes<A>();
  const int64_t whole = dim / L * L, rest = dim - whole;
  const Vec<A> w = spread(weight);
  for (int64_t v = 0; v < whole; v += L) store(sum + v, multiply_add(load(row + v), w, load(sum + v)));
  if (rest) store_some(sum + whole, multiply_add(load_some(row + whole, rest), w, load_some(sum + whole, rest)), rest);
}

template <class T>
void narrow(int64_t dim, const Acc<T>* from, T* to) {
  constexpr int64_t L = lanes<Acc<T>>();
  const int64_t whole = dim / L * L, rest = dim - whole;
  for (int64_t v = 0; v < whole; v += L) store(to + v, load(from + v));
  if (rest) store_some(to + whole, load_some(from + whole, rest), rest);
}

INLINE f64v load_double(const double* p) { return load(p); }
INLINE f64v load_double(const float* p) { return __builtin_convertvector(load_as<f32h>(p), f64v); }

template <class A>
double squared_norm(int64_t dim, const A* row) {
  constexpr int64_t L = lanes<double>();
  f64v sum = {};
  const int64_t whole = dim / L * L;
  for (int64_t v = 0; v < whole; v += L) {
    const f64v x = load_double(row + v);
    sum += x * x;
  }
  double result = total(sum);
  for (int64_t v = whole; v < dim; ++v) result += (double)row[v] * row[v];
  return result;
}

template <class A>
INLINE Vec<A> adam_vector(const AdamNumbers<A>& step, Vec<A> gradient, Vec<A> value, Vec<A>* exp_avg,
                          Vec<A>* exp_avg_sq) {
  const Vec<A> g = gradient * step.scale;
  *exp_avg = *exp_avg * step.beta1 + g * step.rest1;
  *exp_avg_sq = *exp_avg_sq * step.beta2 + g * g * step.rest2;
  return value * step.decay - step.size * *exp_avg / (square_root(*exp_avg_sq) + step.eps);
}

template <class T>
void adam(int64_t dim, const AdamNumbers<Acc<T>>& step, const Acc<T>* gradient, T* values, Acc<T>* exp_avg,
          Acc<T>* exp_avg_sq, Acc<T>* master) {
  typedef Acc<T> A;
  constexpr int64_t L = lanes<A>();
  const int64_t whole = dim / L * L, rest = dim - whole;
  for (int64_t v = 0; v < whole; v += L) {
    Vec<A> m = load(exp_avg + v), s = load(exp_avg_sq + v);
    const Vec<A> p = adam_vector<A>(step, load(gradient + v), master ? load(master + v) : load(values + v), &m, &s);
    store(exp_avg + v, m);
    store(exp_avg_sq + v, s);
    if (master) store(master + v, p);
    store(values + v, p);
  }
  if (rest) {
    Vec<A> m = load_some(exp_avg + whole, rest), s = load_some(exp_avg_sq + whole, rest);
    const Vec<A> p = adam_vector<A>(step, load_some(gradient + whole, rest),
                                    master ? load_some(master + whole, rest) : load_some(values + whole, rest), &m, &s);
    store_some(exp_avg + whole, m, rest);
    store_some(exp_avg_sq + whole, s, rest);
    if (master) store_some(master + whole, p, rest);
    store_some(values + whole, p, rest);
  }
}

// ---- table ---------------------------------------------------------------------------------------------------------

template <class T>
const Kernels<T>& table(const T*) {
  typedef Acc<T> A;
  static const Kernels<T> entries = {
      select<A>, softmax<A>, sum_rows<T>, dot_rows<T>, add_row<A>, narrow<T>, squared_norm<A>, adam<T>,
  };
  return entries;
}

}  // namespace NATIVE_LEVEL
}  // namespace memory_layers
