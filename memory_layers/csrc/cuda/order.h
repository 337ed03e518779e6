// The order of scores (memory_layers/reference): NaN, +inf, ..., -inf; -0 equals +0.
#pragma once

#include "device.h"

namespace memory_layers::cuda {

// Integers in the order of the scores. All are above 0, which stands for "none".
template <class S>
struct Order;

template <>
struct Order<float> {
  using Key = uint32_t;
  static constexpr Key kSign = 0x80000000u;
  static constexpr Key kInf = 0xff800000u;
};

template <>
struct Order<double> {
  using Key = uint64_t;
  static constexpr Key kSign = 0x8000000000000000u;
  static constexpr Key kInf = 0xfff0000000000000u;
};

template <class S>
using Key = typename Order<S>::Key;
template <class S>
constexpr Key<S> kInf = Order<S>::kInf;
template <class S>
constexpr Key<S> kNan = Order<S>::kInf + 1;
template <class S>
constexpr Key<S> kNegInf = ~Order<S>::kInf;  // the bits of -inf are the key of +inf

template <class S>
__device__ __forceinline__ Key<S> key_of(S score) {
  const auto bits = bit_cast<Key<S>>(score + S{0});  // -0 + 0 = +0
  if (score != score) return kNan<S>;
  return bits & Order<S>::kSign ? ~bits : bits | Order<S>::kSign;
}

template <class S>
__device__ __forceinline__ S score_of(Key<S> key) {
  return bit_cast<S>(key & Order<S>::kSign ? key ^ Order<S>::kSign : ~key);
}

// The key of the sum of two scores that are not NaN. +inf + -inf ranks first and is treated separately; here it ranks
// last, so that keys are monotone in both scores.
template <class S>
__device__ __forceinline__ Key<S> sum_key(S a, S b) {
  const S sum = a + b;
  return sum != sum ? kNegInf<S> : key_of<S>(sum);
}

}  // namespace memory_layers::cuda
