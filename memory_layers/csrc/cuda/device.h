// The device as the kernels of this folder see it: CUDA's own names, memory that they address through Global<T> and
// Shared<T>, vector loads, half precision.
//
// nvcc provides all of it. With MEMORY_LAYERS_SIMT, "simt.h" (tests/support/simt) does: it emulates a device on the CPU
// that checks every access, so the same sources are tested without a GPU. Hence they contain no PyTorch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "tasks.h"

namespace memory_layers::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;  // all lanes of a warp

// W neighbours that one instruction reads or writes (two, where they are more than 16 bytes).
template <class T, int W>
struct alignas(W * sizeof(T) < 16 ? W * sizeof(T) : 16) Pack {
  T value[W];
};

// Arrays in shared memory begin at multiples of 16 bytes.
__host__ __device__ constexpr int aligned(int bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace memory_layers::cuda

#ifndef MEMORY_LAYERS_SIMT

#include <cuda_fp16.h>
#undef NDEBUG
#include <cassert>
#define DEVICE_CHECK(condition) assert(condition)  // PyTorch reports it as a device-side assertion

namespace memory_layers::cuda {

template <class T>
using Shared = T*;

// Takes arrays one after the other from the block's dynamic shared memory, each 16-byte aligned.
class Arena {
 public:
  __device__ __forceinline__ explicit Arena(int offset) {
    extern __shared__ __align__(16) char memory[];
    next_ = memory + offset;
  }
  template <class T>
  __device__ __forceinline__ Shared<T> take(int count) {
    T* taken = reinterpret_cast<T*>(next_);
    next_ += aligned(count * sizeof(T));
    return taken;
  }

 private:
  char* next_;
};

template <int W, class T>
__device__ __forceinline__ Pack<T, W> load(const T* p, int64_t i) {
  return *reinterpret_cast<const Pack<T, W>*>(p + i);
}

template <int W, class T>
__device__ __forceinline__ void store(T* p, int64_t i, const Pack<T, W>& pack) {
  *reinterpret_cast<Pack<T, W>*>(p + i) = pack;
}

template <class To, class From>
__device__ __forceinline__ To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

__device__ __forceinline__ float widen(float16 x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ __forceinline__ void narrow(float16& to, float x) { to.bits = __half_as_ushort(__float2half_rn(x)); }

}  // namespace memory_layers::cuda

#else

namespace memory_layers::cuda {

inline float widen(float16 x) { return simt::half_to_float(x.bits); }
inline void narrow(float16& to, float x) { to.bits = simt::float_to_half(x); }

}  // namespace memory_layers::cuda

#endif

namespace memory_layers::cuda {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(bfloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }

__device__ __forceinline__ void narrow(float& to, float x) { to = x; }
__device__ __forceinline__ void narrow(double& to, double x) { to = x; }
__device__ __forceinline__ void narrow(bfloat16& to, float x) {  // to the nearest, ties to even
  const auto bits = bit_cast<uint32_t>(x);
  to.bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The sum over a warp, in every lane; the order of the additions is fixed.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(kAll, x, mask);
  return x;
}

template <class T>
__device__ __forceinline__ T warp_max(T x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const T other = __shfl_xor_sync(kAll, x, mask);
    x = other > x ? other : x;
  }
  return x;
}

template <class T>
__device__ __forceinline__ T warp_min(T x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const T other = __shfl_xor_sync(kAll, x, mask);
    x = other < x ? other : x;
  }
  return x;
}

}  // namespace memory_layers::cuda
