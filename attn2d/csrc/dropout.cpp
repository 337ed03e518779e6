// Dropout, alone and with a residual sum.
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "operators.h"

namespace attn2d {
namespace {

struct DropoutNumbers {
  DropoutMask mask;
  double keep_scale;
};

// p is rounded to a multiple of 2^-16, and what is kept is scaled by the exact inverse of the rounded keep rate.
DropoutNumbers dropout_numbers(const char* op, double p, const Tensor& seed) {
  TORCH_CHECK(p >= 0 && p <= 1, op, ": p must lie in [0, 1], given ", p);
  TORCH_CHECK(seed.device().is_cpu() && seed.scalar_type() == at::kLong && seed.numel() == 1, op,
              ": seed must be one int64 on the CPU");
  const auto threshold = static_cast<uint32_t>(std::lround(p * 65536));
  return {{static_cast<uint64_t>(*data<int64_t>(seed)), threshold},
          threshold == 65536 ? 0.0 : 65536.0 / (65536 - threshold)};
}

// Runs body(begin, end) over elements in parallel, cut at multiples of the mask's block.
template <class F>
void for_elements(int64_t n, const F& body) {
  at::parallel_for(0, ceil_div(n, kDropoutBlock), 64,
                   [&](int64_t begin, int64_t end) { body(begin * kDropoutBlock, std::min(n, end * kDropoutBlock)); });
}

Tensor dropout(const Tensor& h, double p, const Tensor& seed) {
  const auto numbers = dropout_numbers("dropout", p, seed);
  const Tensor source = h.contiguous();
  Tensor out = at::empty_like(source);
  dispatch("dropout", h, [&](auto type) {
    using T = decltype(type);

    const auto& loops = kernels<T>(level());
    for_elements(source.numel(), [&](int64_t begin, int64_t end) {
      loops.dropout(numbers.mask, numbers.keep_scale, 1, nullptr, data<T>(source), mutable_data<T>(out), begin, end);
    });
  });
  return out;
}

Tensor dropout_residual(const Tensor& x, const Tensor& h, double p, double scale, const Tensor& seed) {
  const char* op = "dropout_residual";
  const auto numbers = dropout_numbers(op, p, seed);
  check_same_type(op, "x", x, "h", h);
  TORCH_CHECK(x.sizes() == h.sizes(), op, ": x and h must have one shape, given ", x.sizes(), " and ", h.sizes());
  const Tensor base = x.contiguous(), source = h.contiguous();
  Tensor out = at::empty_like(source);
  dispatch(op, h, [&](auto type) {
    using T = decltype(type);

    const auto& loops = kernels<T>(level());
    for_elements(source.numel(), [&](int64_t begin, int64_t end) {
      loops.dropout(numbers.mask, numbers.keep_scale, scale, data<T>(base), data<T>(source), mutable_data<T>(out),
                    begin, end);
    });
  });
  return out;
}

// (gradient of x, gradient of h)
std::tuple<Tensor, Tensor> dropout_residual_grad(const Tensor& grad, double p, double scale, const Tensor& seed) {
  const char* op = "dropout_residual_grad";
  const auto numbers = dropout_numbers(op, p, seed);
  const Tensor source = grad.contiguous();
  Tensor grad_x = at::empty_like(source), grad_h = at::empty_like(source);
  dispatch(op, grad, [&](auto type) {
    using T = decltype(type);
    const auto& loops = kernels<T>(level());
    for_elements(source.numel(), [&](int64_t begin, int64_t end) {
      loops.dropout_grad(numbers.mask, numbers.keep_scale, scale, data<T>(source), mutable_data<T>(grad_x),
                         mutable_data<T>(grad_h), begin, end);
    });
  });
  return {grad_x, grad_h};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(attn2d, m) {
  m.def("dropout(Tensor h, float p, Tensor seed) -> Tensor", kTags);
  m.def("dropout_residual(Tensor x, Tensor h, float p, float scale, Tensor seed) -> Tensor", kTags);
  m.def("dropout_residual_grad(Tensor grad, float p, float scale, Tensor seed) -> (Tensor, Tensor)", kTags);
}

TORCH_LIBRARY_IMPL(attn2d, CPU, m) {
  m.impl("dropout", dropout);
  m.impl("dropout_residual", dropout_residual);
  m.impl("dropout_residual_grad", dropout_residual_grad);
}

}  // namespace attn2d
