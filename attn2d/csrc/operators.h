// What attn2d's CPU operators share: names, checks of their arguments, and the packed form of a convolution's weights.
//
// No result depends on the number of threads: work that sums is cut into chunks that depend on the shape alone, and
// the chunks' sums are added in order. Gradients and fake implementations are registered in Python, by attn2d/ops/.
//
// Axes: B batch, T target rows, R input rows, S source columns, C channels (innermost), h x k kernel rows x columns.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "kernels.h"
#include "tensors.h"

namespace attn2d {

using at::Tensor;
using native::ceil_div;
using native::data;
using native::dispatch;
using native::level;
using native::mutable_data;
using native::wide_type;

inline const std::vector<at::Tag> kTags = {at::Tag::pt2_compliant_tag};

inline void check_same_type(const char* op, const char* first, const Tensor& a, const char* second, const Tensor& b) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), op, ": ", first, " and ", second, " must have one dtype, given ",
              a.scalar_type(), " and ", b.scalar_type());
}

inline void check_conv(const char* op, const Tensor& grid, int64_t channels, int64_t height, int64_t width,
                       int64_t dilation, int64_t top) {
  TORCH_CHECK(grid.dim() == 4, op, ": the grid must be (B, T, S, C), given ", grid.sizes());
  TORCH_CHECK(grid.size(3) == channels, op, ": the weight has ", channels, " channels, the grid ", grid.size(3));
  TORCH_CHECK(height >= 1 && width >= 1 && width % 2 == 1, op,
              ": the kernel must have at least one row and an odd number of columns, given ", height, " x ", width);
  TORCH_CHECK(dilation >= 1, op, ": dilation must be at least 1, given ", dilation);
  TORCH_CHECK(dilation <= 1 << 20 && height <= 1 << 12 && width <= 1 << 12, op, ": a kernel of ", height, " x ", width,
              " at dilation ", dilation, " is out of all proportion");
  TORCH_CHECK(top >= 0, op, ": top must not be negative, given ", top);
}

inline void check_weight(const char* op, const Tensor& weight) {
  TORCH_CHECK(weight.dim() == 4 && weight.size(1) == 1, op, ": the weight must be (C, 1, h, k), given ",
              weight.sizes());
}

inline void check_norm(const char* op, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& padding) {
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 1 && weight.size(0) == x.size(-1) && x.size(-1) > 0, op, ": x ",
              x.sizes(), " and weight ", weight.sizes(), " must share a last axis of at least one channel");
  check_same_type(op, "x", x, "weight", weight);
  if (padding)
    TORCH_CHECK(padding->scalar_type() == at::kBool && padding->sizes() == x.sizes().slice(0, x.dim() - 1), op,
                ": the padding mask must be bool of x's shape without channels, given ", padding->scalar_type(), " ",
                padding->sizes(), " for ", x.sizes());
}

inline int64_t padded_channels(int64_t channels) { return ceil_div(channels, kLanes) * kLanes; }

inline ConvShape conv_shape(int64_t columns, int64_t channels, int64_t height, int64_t width, int64_t dilation) {
  const int64_t left = (width / 2) * dilation;
  return {columns, channels, 0, columns + 2 * left, left, height, width, dilation};
}

// Weight (C, 1, h, k) -> [ceil(C / 16)][h][k][16] accumulators, turned by 180 degrees if `flipped`.
template <class T>
Tensor pack_weight(const Tensor& weight, bool flipped) {
  using A = Acc<T>;
  const int64_t channels = weight.size(0), taps = weight.size(2) * weight.size(3);
  const Tensor source = weight.to(wide_type(weight)).contiguous();
  Tensor packed = at::zeros({padded_channels(channels) / kLanes, taps, kLanes}, source.options());
  const A* from = data<A>(source);
  A* to = mutable_data<A>(packed);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t tap = 0; tap < taps; ++tap)
      to[(c / kLanes * taps + tap) * kLanes + c % kLanes] = from[c * taps + (flipped ? taps - 1 - tap : tap)];
  return packed;
}

}  // namespace attn2d
