// The maximum over the source, plain or of a gated linear unit.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <tuple>

#include "operators.h"

namespace attn2d {
namespace {

void check_max(const char* op, const Tensor& x, const Tensor& padding, bool gated) {
  TORCH_CHECK(x.dim() == 4, op, ": the grid must be (B, T, S, C), given ", x.sizes());
  TORCH_CHECK(!gated || x.size(3) % 2 == 0, op, ": a gated grid has 2C channels, given ", x.size(3));
  TORCH_CHECK(padding.scalar_type() == at::kBool && padding.dim() == 2 && padding.size(0) == x.size(0) &&
                  padding.size(1) == x.size(2),
              op, ": the padding mask must be bool (B, S) = (", x.size(0), ", ", x.size(2), "), given ",
              padding.scalar_type(), " ", padding.sizes());
  TORCH_CHECK(x.size(2) > 0 || x.size(0) * x.size(1) == 0, op, ": the grid has no column");
}

std::tuple<Tensor, Tensor> max_over_source(const Tensor& x, const Tensor& padding, bool gated) {
  const char* op = "max_over_source";
  check_max(op, x, padding, gated);
  const int64_t rows = x.size(1), columns = x.size(2), channels = x.size(3) / (gated ? 2 : 1);
  const Tensor grid = x.contiguous(), mask = padding.contiguous();
  Tensor values = at::empty({x.size(0), rows, channels}, x.options());
  Tensor indices = at::empty(values.sizes(), x.options().dtype(at::kLong));
  dispatch(op, x, [&](auto type) {
    using T = decltype(type);

    const auto& loops = kernels<T>(level());
    at::parallel_for(0, x.size(0) * rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        loops.max_row(columns, channels, gated, data<bool>(mask) + row / rows * columns,
                      data<T>(grid) + row * columns * x.size(3), mutable_data<T>(values) + row * channels,
                      mutable_data<int64_t>(indices) + row * channels);
    });
  });
  return {values, indices};
}

// `x` is read only if gated; its sizes are the gradient's.
Tensor max_over_source_grad(const Tensor& grad, const Tensor& indices, const Tensor& x, const Tensor& padding,
                            bool gated) {
  const char* op = "max_over_source_grad";
  check_max(op, x, padding, gated);
  check_same_type(op, "grad", grad, "x", x);
  const int64_t rows = x.size(1), columns = x.size(2), channels = x.size(3) / (gated ? 2 : 1);
  TORCH_CHECK(grad.dim() == 3 && grad.size(0) == x.size(0) && grad.size(1) == rows && grad.size(2) == channels &&
                  indices.sizes() == grad.sizes() && indices.scalar_type() == at::kLong,
              op, ": grad ", grad.sizes(), " and indices ", indices.sizes(), " do not belong to x ", x.sizes());
  const Tensor grid = gated ? x.contiguous() : x, mask = padding.contiguous();
  const Tensor grads = grad.contiguous(), places = indices.contiguous();
  const int64_t* place = data<int64_t>(places);
  TORCH_CHECK_INDEX(std::all_of(place, place + places.numel(), [&](int64_t s) { return s >= 0 && s < columns; }), op,
                    ": an index is outside the ", columns, " columns");
  Tensor out = at::empty(x.sizes(), x.options());
  dispatch(op, x, [&](auto type) {
    using T = decltype(type);

    const auto& loops = kernels<T>(level());
    at::parallel_for(0, x.size(0) * rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        loops.max_row_grad(columns, channels, gated, data<bool>(mask) + row / rows * columns,
                           gated ? data<T>(grid) + row * columns * x.size(3) : nullptr, data<T>(grads) + row * channels,
                           data<int64_t>(places) + row * channels, mutable_data<T>(out) + row * columns * x.size(3));
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(attn2d, m) {
  m.def("max_over_source(Tensor x, Tensor padding, bool gated) -> (Tensor, Tensor)", kTags);
  m.def("max_over_source_grad(Tensor grad, Tensor indices, Tensor x, Tensor padding, bool gated) -> Tensor", kTags);
}

TORCH_LIBRARY_IMPL(attn2d, CPU, m) {
  m.impl("max_over_source", max_over_source);
  m.impl("max_over_source_grad", max_over_source_grad);
}

}  // namespace attn2d
