// Included by every_level.h once per instruction set, with NATIVE_LEVEL (a namespace) and VECTOR_BYTES defined.
// No include guard on purpose; no lambdas and nothing from the standard library that would be inlined, since those
// would not be compiled for the instruction set.

namespace attn2d {
namespace NATIVE_LEVEL {

#include "vectors.h"
#include "arithmetic.h"

// ---- depthwise convolution -----------------------------------------------------------------------------------------

template <class T>
void pack_row(const ConvShape& shape, int64_t left, const T* row, Acc<T>* packed) {
  constexpr int64_t L = VECTOR_BYTES / sizeof(Acc<T>);
  for (int64_t c = 0; c < shape.channels; c += kLanes) {
    Acc<T>* to = packed + c * shape.packed_columns + left * kLanes;
    const T* from = row + c;
    if (shape.channels - c >= kLanes) {
      for (int64_t s = 0; s < shape.columns; ++s, to += kLanes, from += shape.stride)
        for (int64_t l = 0; l < kLanes; l += L) store(to + l, load(from + l));
    } else {
      const int64_t n = shape.channels - c;
      for (int64_t s = 0; s < shape.columns; ++s, to += kLanes, from += shape.stride) {
        T lanes[kLanes] = {};
        for (int64_t l = 0; l < n; ++l) lanes[l] = from[l];
        for (int64_t l = 0; l < kLanes; l += L) store(to + l, load(lanes + l));
      }
    }
  }
}

// N columns of the output at once, one vector of channels; the N sums stay in registers.
template <int N, class T>
INLINE void correlate_columns(const ConvShape& shape, const Acc<T>* const* rows, int64_t offset, const Acc<T>* weight,
                              T* out, int64_t lanes) {
  typedef typename Vector<Acc<T>>::type V;
  constexpr int64_t L = VECTOR_BYTES / sizeof(Acc<T>);
  V sum[N];
  for (int n = 0; n < N; ++n) sum[n] = V{};
  const int64_t step = shape.dilation * kLanes;
  for (int64_t i = 0; i < shape.height; ++i, weight += shape.width * kLanes) {
    if (!rows[i]) continue;
    const Acc<T>* x = rows[i] + offset;
    const Acc<T>* w = weight;
    for (int64_t j = 0; j < shape.width; ++j, x += step, w += kLanes) {
      const V tap = load(w);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) sum[n] += tap * load(x + n * kLanes);
    }
  }
  if (lanes >= L) {
    for (int n = 0; n < N; ++n) store(out + n * shape.stride, sum[n]);
  } else {
    for (int n = 0; n < N; ++n) store_some(out + n * shape.stride, sum[n], lanes);
  }
}

template <class T>
void correlate_row(const ConvShape& shape, const Acc<T>* const* rows, const Acc<T>* weight, T* out) {
  constexpr int64_t L = VECTOR_BYTES / sizeof(Acc<T>);
  for (int64_t c = 0; c < shape.channels; c += L) {
    const int64_t block = c / kLanes, lane = c % kLanes, lanes = shape.channels - c;
    const Acc<T>* w = weight + block * shape.height * shape.width * kLanes + lane;
    for (int64_t s = 0; s < shape.columns;) {
      const int64_t offset = (block * shape.packed_columns + s) * kLanes + lane;
      T* to = out + s * shape.stride + c;
      const int64_t left = shape.columns - s;
      if (left >= 8) {
        correlate_columns<8, T>(shape, rows, offset, w, to, lanes);
        s += 8;
      } else if (left >= 6) {
        correlate_columns<6, T>(shape, rows, offset, w, to, lanes);
        s += 6;
      } else if (left >= 4) {
        correlate_columns<4, T>(shape, rows, offset, w, to, lanes);
        s += 4;
      } else if (left >= 2) {
        correlate_columns<2, T>(shape, rows, offset, w, to, lanes);
        s += 2;
      } else {
        correlate_columns<1, T>(shape, rows, offset, w, to, lanes);
        s += 1;
      }
    }
  }
}

// N neighbouring taps of one kernel row, one vector of channels; the N sums stay in registers.
template <int N, class A>
INLINE void weight_grad_taps(int64_t columns, int64_t step, const A* x, const A* grad, A* grad_weight) {
  typedef typename Vector<A>::type V;
  V sum[N];
  for (int n = 0; n < N; ++n) sum[n] = load(grad_weight + n * kLanes);
  for (int64_t s = 0; s < columns; ++s, x += kLanes, grad += kLanes) {
    const V g = load(grad);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) sum[n] += g * load(x + n * step);
  }
  for (int n = 0; n < N; ++n) store(grad_weight + n * kLanes, sum[n]);
}

template <class T>
void add_weight_grad(const ConvShape& shape, const Acc<T>* const* rows, const Acc<T>* grad, Acc<T>* grad_weight) {
  typedef Acc<T> A;
  constexpr int64_t L = VECTOR_BYTES / sizeof(A);
  const int64_t step = shape.dilation * kLanes;
  for (int64_t c = 0; c < shape.channels; c += L) {
    const int64_t block = c / kLanes, lane = c % kLanes;
    const int64_t offset = block * shape.packed_columns * kLanes + lane;
    const A* g = grad + offset;
    for (int64_t i = 0; i < shape.height; ++i) {
      if (!rows[i]) continue;
      const A* x = rows[i] + offset;
      A* to = grad_weight + (block * shape.height + i) * shape.width * kLanes + lane;
      int64_t left = shape.width;
      while (left > 0) {
        int64_t taken = left >= 12 ? 8 : left;  // 12 taps or more: eights first, so that the rest is never tiny
        switch (taken) {
          case 1:
            weight_grad_taps<1, A>(shape.columns, step, x, g, to);
            break;
          case 2:
            weight_grad_taps<2, A>(shape.columns, step, x, g, to);
            break;
          case 3:
            weight_grad_taps<3, A>(shape.columns, step, x, g, to);
            break;
          case 4:
            weight_grad_taps<4, A>(shape.columns, step, x, g, to);
            break;
          case 5:
            weight_grad_taps<5, A>(shape.columns, step, x, g, to);
            break;
          case 6:
            weight_grad_taps<6, A>(shape.columns, step, x, g, to);
            break;
          case 7:
            weight_grad_taps<7, A>(shape.columns, step, x, g, to);
            break;
          case 8:
            weight_grad_taps<8, A>(shape.columns, step, x, g, to);
            break;
          case 9:
            weight_grad_taps<9, A>(shape.columns, step, x, g, to);
            break;
          case 10:
            weight_grad_taps<10, A>(shape.columns, step, x, g, to);
            break;
          default:
            weight_grad_taps<11, A>(shape.columns, step, x, g, to);
            break;
        }
        left -= taken;
        x += taken * step;
        to += taken * kLanes;
      }
    }
  }
}

// ---- dropout -------------------------------------------------------------------------------------------------------

// Lane-wise product of the low halves of 64-bit lanes with a 32-bit constant.
INLINE u64v multiply_low(u64v x, uint32_t constant) {
#if defined(NATIVE_X86) && VECTOR_BYTES == 64
  return (u64v)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(constant));
#elif defined(NATIVE_X86) && VECTOR_BYTES == 32
  return (u64v)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(constant));
#elif defined(NATIVE_X86)
  return (u64v)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(constant));
#elif defined(__aarch64__)
  return (u64v)vmull_u32(vmovn_u64((uint64x2_t)x), vdup_n_u32(constant));
#else
  return (x & 0xffffffffu) * constant;
#endif
}

// 128 x 16 random bits: Philox-4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011; passes TestU01's BigCrush) with key = seed at the 16 counters 16 * block ... 16 * block + 15.
// Element 16 q + l takes counter l's output word q / 2, its low half for even q and its high half for odd q.
INLINE void random_bits(uint64_t seed, uint64_t block, uint32_t* bits) {
  constexpr int64_t L = VECTOR_BYTES / 8;
  u64v lane;
  for (int64_t l = 0; l < L; ++l) lane[l] = 2 * l;
  for (int64_t first = 0; first < 16; first += 2 * L) {
    // Each 32-bit word lives in the low half of a 64-bit lane, the high half is garbage that products ignore; even and
    // odd counters are two vectors.
    u64v even0 = lane + (16 * block + first), odd0 = even0 + 1;
    u64v even1 = even0 >> 32, odd1 = odd0 >> 32;
    u64v even2 = {}, odd2 = {}, even3 = {}, odd3 = {};
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const u64v even_p = multiply_low(even0, 0xD2511F53u), odd_p = multiply_low(odd0, 0xD2511F53u);
      const u64v even_q = multiply_low(even2, 0xCD9E8D57u), odd_q = multiply_low(odd2, 0xCD9E8D57u);
      even0 = (even_q >> 32) ^ even1 ^ (uint64_t)key0;
      odd0 = (odd_q >> 32) ^ odd1 ^ (uint64_t)key0;
      even2 = (even_p >> 32) ^ even3 ^ (uint64_t)key1;
      odd2 = (odd_p >> 32) ^ odd3 ^ (uint64_t)key1;
      even1 = even_q;
      odd1 = odd_q;
      even3 = even_p;
      odd3 = odd_p;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    const u64v even[4] = {even0, even1, even2, even3}, odd[4] = {odd0, odd1, odd2, odd3};
    for (int word = 0; word < 4; ++word) {
      const u32v merged = (u32v)((even[word] & 0xffffffffu) | (odd[word] << 32));
      const u32v low = merged & 0xffffu, high = merged >> 16;
      std::memcpy(bits + 32 * word + first, &low, sizeof low);
      std::memcpy(bits + 32 * word + 16 + first, &high, sizeof high);
    }
  }
}

INLINE void draw(DropoutMask mask, uint64_t block, uint32_t* bits) {
  if (mask.threshold)
    random_bits(mask.seed, block, bits);
  else
    std::memset(bits, 0, kDropoutBlock * sizeof *bits);  // nothing is dropped
}

INLINE f32v keep(const uint32_t* bits, uint32_t threshold, f32v kept) {
  i32v r;
  std::memcpy(&r, bits, sizeof r);
  return r >= (int32_t)threshold ? kept : f32v{};
}

INLINE f64v keep(const uint32_t* bits, uint32_t threshold, f64v kept) {
  i64v r;
  for (int64_t l = 0; l < (int64_t)(VECTOR_BYTES / 8); ++l) r[l] = bits[l];
  return r >= (int64_t)threshold ? kept : f64v{};
}

template <class T>
INLINE void dropout_block(DropoutMask mask, Acc<T> keep_scale, Acc<T> scale, const T* x, const T* h, T* out,
                          uint64_t block) {
  typedef typename Vector<Acc<T>>::type V;
  constexpr int64_t L = VECTOR_BYTES / sizeof(Acc<T>);
  uint32_t bits[kDropoutBlock];
  draw(mask, block, bits);
  for (int64_t e = 0; e < kDropoutBlock; e += L) {
    V y = keep(bits + e, mask.threshold, load(h + e) * keep_scale);
    if (x) y += load(x + e);
    store(out + e, y * scale);
  }
}

template <class T>
void dropout(DropoutMask mask, Acc<T> keep_scale, Acc<T> scale, const T* x, const T* h, T* out, int64_t begin,
             int64_t end) {
  int64_t e = begin;
  for (; e + kDropoutBlock <= end; e += kDropoutBlock)
    dropout_block<T>(mask, keep_scale, scale, x ? x + e : nullptr, h + e, out + e, e / kDropoutBlock);
  if (e < end) {
    T tail_x[kDropoutBlock] = {}, tail_h[kDropoutBlock] = {}, tail_out[kDropoutBlock];
    const size_t bytes = (end - e) * sizeof(T);
    if (x) std::memcpy(tail_x, x + e, bytes);
    std::memcpy(tail_h, h + e, bytes);
    dropout_block<T>(mask, keep_scale, scale, x ? tail_x : nullptr, tail_h, tail_out, e / kDropoutBlock);
    std::memcpy(out + e, tail_out, bytes);
  }
}

template <class T>
INLINE void dropout_grad_block(DropoutMask mask, Acc<T> keep_scale, Acc<T> scale, const T* grad, T* grad_x, T* grad_h,
                               uint64_t block) {
  typedef typename Vector<Acc<T>>::type V;
  constexpr int64_t L = VECTOR_BYTES / sizeof(Acc<T>);
  uint32_t bits[kDropoutBlock];
  draw(mask, block, bits);
  for (int64_t e = 0; e < kDropoutBlock; e += L) {
    const V g = load(grad + e) * scale;
    store(grad_x + e, g);
    store(grad_h + e, keep(bits + e, mask.threshold, g * keep_scale));
  }
}

template <class T>
void dropout_grad(DropoutMask mask, Acc<T> keep_scale, Acc<T> scale, const T* grad, T* grad_x, T* grad_h, int64_t begin,
                  int64_t end) {
  int64_t e = begin;
  for (; e + kDropoutBlock <= end; e += kDropoutBlock)
    dropout_grad_block<T>(mask, keep_scale, scale, grad + e, grad_x + e, grad_h + e, e / kDropoutBlock);
  if (e < end) {
    T tail[kDropoutBlock] = {}, tail_x[kDropoutBlock], tail_h[kDropoutBlock];
    const size_t bytes = (end - e) * sizeof(T);
    std::memcpy(tail, grad + e, bytes);
    dropout_grad_block<T>(mask, keep_scale, scale, tail, tail_x, tail_h, e / kDropoutBlock);
    std::memcpy(grad_x + e, tail_x, bytes);
    std::memcpy(grad_h + e, tail_h, bytes);
  }
}

// ---- maximum over the source ---------------------------------------------------------------------------------------

template <class V>
INLINE V sigmoid(V x) {
  return 1 / (1 + exponential(-x));
}

// G vectors of channels at once (256 bytes of float: whole cache lines per column).
template <int G, bool gated, class T>
INLINE void max_channels(int64_t columns, int64_t channels, const bool* padding, const T* x, T* values,
                         int64_t* indices, int64_t lanes) {
  typedef typename Vector<Acc<T>>::type V;
  typedef typename Vector<Acc<T>>::integer I;
  typedef typename Vector<Acc<T>>::lane Lane;
  constexpr int64_t L = VECTOR_BYTES / sizeof(Acc<T>);
  const int64_t stride = gated ? 2 * channels : channels;
  V best[G];
  I where[G];
  for (int g = 0; g < G; ++g) {
    best[g] = V{};
    where[g] = I{};
  }
  bool first = true;
  for (int64_t s = 0; s < columns; ++s) {
    if (padding[s]) continue;
    const T* from = x + s * stride;
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      V value = lanes >= L ? load(from + g * L) : load_some(from + g * L, lanes);
      if (gated)
        value *= sigmoid(lanes >= L ? load(from + channels + g * L) : load_some(from + channels + g * L, lanes));
      // NaN wins over numbers, as in torch.max, and the first NaN stays.
      const I better = first ? ~I{} : ((value > best[g]) | ((value != value) & (best[g] == best[g])));
      best[g] = better ? value : best[g];
      where[g] = better ? I{} + (Lane)s : where[g];
    }
    first = false;
  }
  for (int g = 0; g < G; ++g) {
    const int64_t n = lanes < L ? lanes : L;
    if (lanes >= L) {
      store(values + g * L, best[g]);
    } else {
      store_some(values + g * L, best[g], lanes);
    }
    for (int64_t l = 0; l < n; ++l) indices[g * L + l] = where[g][l];
  }
}

template <bool gated, class T>
INLINE void max_row_as(int64_t columns, int64_t channels, const bool* padding, const T* x, T* values,
                       int64_t* indices) {
  constexpr int64_t L = VECTOR_BYTES / sizeof(Acc<T>);
  int64_t c = 0;
  for (; c + 4 * L <= channels; c += 4 * L)
    max_channels<4, gated, T>(columns, channels, padding, x + c, values + c, indices + c, 4 * L);
  for (; c < channels; c += L)
    max_channels<1, gated, T>(columns, channels, padding, x + c, values + c, indices + c, channels - c);
}

template <class T>
void max_row(int64_t columns, int64_t channels, bool gated, const bool* padding, const T* x, T* values,
             int64_t* indices) {
  if (gated)
    max_row_as<true, T>(columns, channels, padding, x, values, indices);
  else
    max_row_as<false, T>(columns, channels, padding, x, values, indices);
}

template <class T>
INLINE Acc<T> widen(T x) {
  return x;
}
template <>
INLINE float widen<bfloat16>(bfloat16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
void max_row_grad(int64_t columns, int64_t channels, bool gated, const bool* padding, const T* x, const T* grad,
                  const int64_t* indices, T* grad_x) {
  typedef Acc<T> A;
  typedef typename Vector<A>::type V;
  constexpr int64_t L = VECTOR_BYTES / sizeof(A);
  const int64_t stride = gated ? 2 * channels : channels;
  std::memset(static_cast<void*>(grad_x), 0, columns * stride * sizeof(T));
  for (int64_t c = 0; c < channels; c += L) {
    const int64_t n = channels - c < L ? channels - c : L;
    if (gated) {
      A value[L] = {}, gate[L] = {};
      for (int64_t l = 0; l < n; ++l) {
        const T* cell = x + indices[c + l] * stride + c + l;
        value[l] = widen(cell[0]);
        gate[l] = widen(cell[channels]);
      }
      const V sigma = sigmoid(load(gate));
      const V g = load_some(grad + c, n);
      T to_value[L], to_gate[L];
      store(to_value, g * sigma);
      store(to_gate, g * load(value) * sigma * (1 - sigma));
      for (int64_t l = 0; l < n; ++l) {
        const int64_t s = indices[c + l];
        if (padding[s]) continue;  // every column is padding: the value was the constant zero
        grad_x[s * stride + c + l] = to_value[l];
        grad_x[s * stride + channels + c + l] = to_gate[l];
      }
    } else {
      for (int64_t l = 0; l < n; ++l) {
        const int64_t s = indices[c + l];
        if (!padding[s]) grad_x[s * stride + c + l] = grad[c + l];
      }
    }
  }
}

// ---- layer norm ----------------------------------------------------------------------------------------------------

template <class T>
void layer_norm(int64_t channels, double eps, const T* x, const T* weight, const T* bias, T* out, Acc<T>* mean,
                Acc<T>* rstd) {
  typedef Acc<T> A;
  typedef typename Vector<A>::type V;
  constexpr int64_t L = VECTOR_BYTES / sizeof(A);
  const int64_t whole = channels / L * L, rest = channels - whole;
  V sum = {};
  for (int64_t c = 0; c < whole; c += L) sum += load(x + c);
  if (rest) sum += load_some(x + whole, rest);
  const A m = total(sum) / (A)channels;
  V squares = {};
  for (int64_t c = 0; c < whole; c += L) {
    const V d = load(x + c) - m;
    squares += d * d;
  }
  A variance = total(squares);
  for (int64_t c = whole; c < channels; ++c) variance += (widen(x[c]) - m) * (widen(x[c]) - m);
  const A r = 1 / std::sqrt(variance / (A)channels + (A)eps);
  for (int64_t c = 0; c < whole; c += L) store(out + c, (load(x + c) - m) * r * load(weight + c) + load(bias + c));
  if (rest)
    store_some(out + whole,
               (load_some(x + whole, rest) - m) * r * load_some(weight + whole, rest) + load_some(bias + whole, rest),
               rest);
  *mean = m;
  *rstd = r;
}

template <class T>
void layer_norm_grad(int64_t channels, const T* x, const T* weight, Acc<T> mean, Acc<T> rstd, const T* grad, T* grad_x,
                     Acc<T>* grad_weight, Acc<T>* grad_bias) {
  typedef Acc<T> A;
  typedef typename Vector<A>::type V;
  constexpr int64_t L = VECTOR_BYTES / sizeof(A);
  const int64_t whole = channels / L * L, rest = channels - whole;
  V sum = {}, sum_x = {};
  for (int64_t c = 0; c < whole; c += L) {
    const V g = load(grad + c), n = (load(x + c) - mean) * rstd, gw = g * load(weight + c);
    sum += gw;
    sum_x += gw * n;
    store(grad_weight + c, load(grad_weight + c) + g * n);
    store(grad_bias + c, load(grad_bias + c) + g);
  }
  if (rest) {
    // Lanes beyond the channels have gradient zero, so what they add is zero.
    const V g = load_some(grad + whole, rest), n = (load_some(x + whole, rest) - mean) * rstd;
    const V gw = g * load_some(weight + whole, rest);
    sum += gw;
    sum_x += gw * n;
    store_some(grad_weight + whole, load_some(grad_weight + whole, rest) + g * n, rest);
    store_some(grad_bias + whole, load_some(grad_bias + whole, rest) + g, rest);
  }
  const A a = total(sum) / (A)channels, b = total(sum_x) / (A)channels;
  for (int64_t c = 0; c < whole; c += L) {
    const V n = (load(x + c) - mean) * rstd;
    store(grad_x + c, (load(grad + c) * load(weight + c) - a - n * b) * rstd);
  }
  if (rest) {
    const V n = (load_some(x + whole, rest) - mean) * rstd;
    store_some(grad_x + whole, (load_some(grad + whole, rest) * load_some(weight + whole, rest) - a - n * b) * rstd,
               rest);
  }
}

// ---- table ---------------------------------------------------------------------------------------------------------

template <class T>
const Kernels<T>& table(const T*) {
  static const Kernels<T> entries = {
      pack_row<T>, correlate_row<T>, add_weight_grad<T>, dropout<T>,         dropout_grad<T>,
      max_row<T>,  max_row_grad<T>,  layer_norm<T>,      layer_norm_grad<T>,
  };
  return entries;
}

}  // namespace NATIVE_LEVEL
}  // namespace attn2d
