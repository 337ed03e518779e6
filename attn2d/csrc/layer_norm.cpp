// Layer norm over the channels, which writes zeros at padded cells.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "operators.h"

namespace attn2d {
namespace {

// Padded cells come out as zeros. Returns (out, mean, rstd), the last two of one accumulator a cell.
std::tuple<Tensor, Tensor, Tensor> layer_norm_masked(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                     double eps, const std::optional<Tensor>& padding) {
  const char* op = "layer_norm_masked";
  check_norm(op, x, weight, padding);
  check_norm(op, x, bias, padding);
  const int64_t channels = x.size(-1), cells = x.numel() / channels;
  const Tensor source = x.contiguous(), w = weight.contiguous(), b = bias.contiguous();
  const Tensor mask = padding ? padding->contiguous() : Tensor();
  Tensor out = at::empty_like(source);
  Tensor mean = at::empty({cells}, x.options().dtype(wide_type(x))), rstd = at::empty_like(mean);
  dispatch(op, x, [&](auto type) {
    using T = decltype(type);
    const auto& loops = kernels<T>(level());
    const bool* padded = padding ? data<bool>(mask) : nullptr;
    at::parallel_for(0, cells, 32, [&](int64_t begin, int64_t end) {
      for (int64_t cell = begin; cell < end; ++cell) {
        T* to = mutable_data<T>(out) + cell * channels;
        Acc<T>* statistics[] = {mutable_data<Acc<T>>(mean) + cell, mutable_data<Acc<T>>(rstd) + cell};
        if (padded && padded[cell]) {
          std::memset(static_cast<void*>(to), 0, channels * sizeof(T));
          *statistics[0] = *statistics[1] = 0;
        } else {
          loops.layer_norm(channels, eps, data<T>(source) + cell * channels, data<T>(w), data<T>(b), to, statistics[0],
                           statistics[1]);
        }
      }
    });
  });
  return {out, mean, rstd};
}

// (gradient of x, of weight, of bias)
std::tuple<Tensor, Tensor, Tensor> layer_norm_masked_grad(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                          const Tensor& mean, const Tensor& rstd,
                                                          const std::optional<Tensor>& padding) {
  const char* op = "layer_norm_masked_grad";
  check_norm(op, x, weight, padding);
  check_same_type(op, "grad", grad, "x", x);
  const int64_t channels = x.size(-1), cells = x.numel() / channels;
  TORCH_CHECK(grad.sizes() == x.sizes() && mean.numel() == cells && rstd.numel() == cells &&
                  mean.scalar_type() == wide_type(x) && rstd.scalar_type() == wide_type(x),
              op, ": grad ", grad.sizes(), ", mean and rstd do not belong to x ", x.sizes());
  const Tensor source = x.contiguous(), w = weight.contiguous(), grads = grad.contiguous();
  const Tensor means = mean.contiguous(), rstds = rstd.contiguous(), mask = padding ? padding->contiguous() : Tensor();
  Tensor grad_x = at::empty_like(source);
  // Chunks depend on the number of cells alone.
  const int64_t chunks = std::clamp<int64_t>(ceil_div(cells, 64), 1, 32), step = ceil_div(cells, chunks);
  Tensor sums = at::zeros({chunks, 2, channels}, means.options());
  dispatch(op, x, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    const auto& loops = kernels<T>(level());
    const bool* padded = padding ? data<bool>(mask) : nullptr;
    A* partial = mutable_data<A>(sums);
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        A* grad_weight = partial + chunk * 2 * channels;
        for (int64_t cell = chunk * step; cell < std::min(cells, (chunk + 1) * step); ++cell) {
          T* to = mutable_data<T>(grad_x) + cell * channels;
          if (padded && padded[cell])
            std::memset(static_cast<void*>(to), 0, channels * sizeof(T));
          else
            loops.layer_norm_grad(channels, data<T>(source) + cell * channels, data<T>(w), data<A>(means)[cell],
                                  data<A>(rstds)[cell], data<T>(grads) + cell * channels, to, grad_weight,
                                  grad_weight + channels);
        }
      }
    });
    for (int64_t chunk = 1; chunk < chunks; ++chunk)
      for (int64_t c = 0; c < 2 * channels; ++c) partial[c] += partial[chunk * 2 * channels + c];
  });
  const Tensor total = sums.select(0, 0).to(x.scalar_type());
  return {grad_x, total.select(0, 0).clone(), total.select(0, 1).clone()};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(attn2d, m) {
  m.def(
      "layer_norm_masked(Tensor x, Tensor weight, Tensor bias, float eps, Tensor? padding) -> (Tensor, Tensor, Tensor)",
      kTags);
  m.def(
      "layer_norm_masked_grad(Tensor grad, Tensor x, Tensor weight, Tensor mean, Tensor rstd, Tensor? padding) -> "
      "(Tensor, Tensor, Tensor)",
      kTags);
}

TORCH_LIBRARY_IMPL(attn2d, CPU, m) {
  m.impl("layer_norm_masked", layer_norm_masked);
  m.impl("layer_norm_masked_grad", layer_norm_masked_grad);
}

}  // namespace attn2d
