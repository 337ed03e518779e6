// What the operators do with tensors on their way to the kernels.
#pragma once

#include <ATen/Version.h>
#include <ATen/core/Tensor.h>

#include <string>

#include "formats.h"

namespace native {

using at::Tensor;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What x is accumulated in.
inline at::ScalarType wide_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// The instruction set PyTorch itself uses (ATEN_CPU_CAPABILITY overrides it).
inline Level level() {
  static const Level chosen = [] {
    const std::string capability = at::get_cpu_capability();
    if (capability.rfind("AVX512", 0) == 0) return Level::avx512;
    if (capability.rfind("AVX2", 0) == 0) return Level::avx2;
    return Level::baseline;
  }();
  return chosen;
}

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// Calls body with a value of the storage type of x.
template <class F>
void dispatch(const char* op, const Tensor& x, const F& body) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return body(float{});
    case at::kDouble:
      return body(double{});
    case at::kBFloat16:
      return body(bfloat16{});
    default:
      TORCH_CHECK(false, op, ": dtype must be float32, float64 or bfloat16 on the CPU, given ", x.scalar_type(),
                  "; the backend 'torch' takes others");
  }
}

}  // namespace native
