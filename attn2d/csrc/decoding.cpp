// A step of incremental decoding: one new row of the grid, and what a convolution needs of the rows before it.
//
// A packed row is what a step leaves to the steps after it: (B, ceil(C / 16), S + 2 margin, 16) accumulators, zero in
// the margins and in the channels beyond C.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "operators.h"

namespace attn2d {
namespace {

// Geometry of a convolution of whole packed rows: all channels are one group.
ConvShape row_shape(const Tensor& x, int64_t height, int64_t width, int64_t dilation) {
  ConvShape shape = conv_shape(x.size(2), x.size(3), height, width, dilation);
  shape.stride = shape.channels = x.size(3);
  return shape;
}

template <class T>
void clear_margins(const ConvShape& shape, Acc<T>* packed) {
  const int64_t before = shape.left * kLanes, row = shape.columns * kLanes, whole = shape.packed_columns * kLanes;
  for (int64_t block = 0; block < ceil_div(shape.channels, kLanes); ++block) {
    Acc<T>* to = packed + block * whole;
    std::fill(to, to + before, Acc<T>(0));
    std::fill(to + before + row, to + whole, Acc<T>(0));
  }
}

// The packed form of layer_norm(x), x (B, 1, S, C), with zeros at padded columns.
Tensor packed_norm_row(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps,
                       const std::optional<Tensor>& padding, int64_t margin) {
  const char* op = "packed_norm_row";
  TORCH_CHECK(x.dim() == 4 && x.size(1) == 1, op, ": one row (B, 1, S, C) at a time, given ", x.sizes());
  TORCH_CHECK(margin >= 0 && margin <= 1 << 30, op, ": the margin must not be negative, given ", margin);
  check_norm(op, x, weight, std::nullopt);
  check_norm(op, x, bias, std::nullopt);
  const int64_t batch = x.size(0), columns = x.size(2), channels = x.size(3);
  TORCH_CHECK(!padding || (padding->scalar_type() == at::kBool && padding->dim() == 2 && padding->size(0) == batch &&
                           padding->size(1) == columns),
              op, ": the padding mask must be bool (B, S) = (", batch, ", ", columns, ")");
  const ConvShape shape = row_shape(x, 1, 2 * margin + 1, 1);
  const Tensor grid = x.contiguous(), w = weight.contiguous(), b = bias.contiguous();
  const Tensor mask = padding ? padding->contiguous() : Tensor();
  Tensor packed =
      at::empty({batch, ceil_div(channels, kLanes), shape.packed_columns, kLanes}, x.options().dtype(wide_type(x)));
  dispatch(op, x, [&](auto type) {
    using T = decltype(type);
    const auto& loops = kernels<T>(level());
    const int64_t packed_size = padded_channels(channels) * shape.packed_columns;
    at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> normed(columns * channels);
      Acc<T> mean, rstd;
      for (int64_t sentence = begin; sentence < end; ++sentence) {
        const T* row = data<T>(grid) + sentence * columns * channels;
        const bool* padded = padding ? data<bool>(mask) + sentence * columns : nullptr;
        for (int64_t s = 0; s < columns; ++s) {
          T* to = normed.data() + s * channels;
          if (padded && padded[s])
            std::memset(static_cast<void*>(to), 0, channels * sizeof(T));
          else
            loops.layer_norm(channels, eps, row + s * channels, data<T>(w), data<T>(b), to, &mean, &rstd);
        }
        Acc<T>* to = mutable_data<Acc<T>>(packed) + sentence * packed_size;
        clear_margins<T>(shape, to);
        loops.pack_row(shape, shape.left, normed.data(), to);
      }
    });
  });
  return packed;
}

void check_packed_row(const char* op, const ConvShape& shape, const Tensor& x, const Tensor& row) {
  TORCH_CHECK(row.is_contiguous() && row.scalar_type() == wide_type(x) && row.dim() == 4 &&
                  row.size(1) == ceil_div(shape.channels, kLanes) && row.size(2) == shape.packed_columns &&
                  row.size(3) == kLanes,
              op, ": not a packed row for such an x: ", row.sizes());
}

// (x + convolution of the rows above and `row`) * scale, x (B, 1, S, C).
// above: packed rows of the steps before, the oldest first, of any batch sizes B'; origins (len(above), B): which
// sentence of each of them every sentence of x continues. Rows that are missing count as zeros.
Tensor residual_conv_row(const Tensor& x, const Tensor& row, at::TensorList above, const std::optional<Tensor>& origins,
                         const Tensor& weight, int64_t dilation, double scale) {
  const char* op = "residual_conv_row";
  check_weight(op, weight);
  check_conv(op, x, weight.size(0), weight.size(2), weight.size(3), dilation, 0);
  TORCH_CHECK(x.size(1) == 1, op, ": one row at a time, given ", x.sizes());
  check_same_type(op, "x", x, "weight", weight);
  const int64_t batch = x.size(0), columns = x.size(2), channels = x.size(3), count = above.size();
  const ConvShape shape = row_shape(x, weight.size(2), weight.size(3), dilation);
  check_packed_row(op, shape, x, row);
  TORCH_CHECK(row.size(0) == batch, op, ": the row has ", row.size(0), " sentences, x ", batch);
  TORCH_CHECK(count == 0 || (origins && origins->scalar_type() == at::kLong && origins->dim() == 2 &&
                             origins->size(0) == count && origins->size(1) == batch),
              op, ": origins must be int64 (rows, B) = (", count, ", ", batch, ")");
  const Tensor from = count ? origins->contiguous() : Tensor();
  const int64_t* origin = count ? data<int64_t>(from) : nullptr;
  for (int64_t r = 0; r < count; ++r) {
    check_packed_row(op, shape, x, above[r]);
    for (int64_t b = 0; b < batch; ++b)
      TORCH_CHECK_INDEX(origin[r * batch + b] >= 0 && origin[r * batch + b] < above[r].size(0), op, ": origin ",
                        origin[r * batch + b], " is outside row ", r, " of ", above[r].size(0));
  }
  const Tensor grid = x.contiguous();
  Tensor out = at::empty_like(grid);
  dispatch(op, x, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    const auto& loops = kernels<T>(level());
    const Tensor packed_weight = pack_weight<T>(weight, false);
    const int64_t packed_size = padded_channels(channels) * shape.packed_columns;
    std::vector<const A*> starts(count);
    for (int64_t r = 0; r < count; ++r) starts[r] = data<A>(above[r]);
    at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      std::vector<const A*> taps(shape.height);
      std::vector<T> branch(columns * channels);
      for (int64_t b = begin; b < end; ++b) {
        for (int64_t i = 0; i < shape.height; ++i) {
          const int64_t r = count - (shape.height - 1 - i) * dilation;  // `row` stands at `count`
          const A* start = r < 0 ? nullptr : r == count ? data<A>(row) + b * packed_size : starts[r];
          taps[i] = r < 0 || r == count ? start : start + origin[r * batch + b] * packed_size;
        }
        loops.correlate_row(shape, taps.data(), data<A>(packed_weight), branch.data());
        const int64_t cells = b * columns * channels;
        loops.dropout({0, 0}, 1, scale, data<T>(grid) + cells, branch.data(), mutable_data<T>(out) + cells, 0,
                      columns * channels);
      }
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(attn2d, m) {
  m.def("packed_norm_row(Tensor x, Tensor weight, Tensor bias, float eps, Tensor? padding, int margin) -> Tensor",
        kTags);
  m.def(
      "residual_conv_row(Tensor x, Tensor row, Tensor[] above, Tensor? origins, Tensor weight, int dilation, float "
      "scale) -> Tensor",
      kTags);
}

TORCH_LIBRARY_IMPL(attn2d, CPU, m) {
  m.impl("packed_norm_row", packed_norm_row);
  m.impl("residual_conv_row", residual_conv_row);
}

}  // namespace attn2d
