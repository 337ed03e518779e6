// The depthwise convolution over the grid, and its gradients.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "operators.h"

namespace attn2d {
namespace {

// Channels that one task of a convolution works on: whole cache lines of both float and bfloat16.
constexpr int64_t kGroup = 64;

// 64-byte aligned zeros of one thread.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t size) : memory_(size + 64 / sizeof(A)) {
    void* p = memory_.data();
    size_t space = memory_.size() * sizeof(A);
    start_ = static_cast<A*>(std::align(64, size * sizeof(A), p, space));
  }
  A* get() { return start_; }

 private:
  std::vector<A> memory_;
  A* start_;
};

// Prefetches one row's group of channels: S parts, C apart, a pattern that hardware does not predict.
template <class T>
void prefetch_row(const ConvShape& shape, const T* row) {
#if defined(__GNUC__) || defined(__clang__)
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t s = 0; s < shape.columns; ++s, row += shape.stride)
    for (int64_t c = 0; c < shape.channels; c += line) __builtin_prefetch(row + c, 0, 2);
#endif
}

// Rows of one sentence and one group of channels in packed form, packed at first use: a ring of `window` rows.
template <class T>
class RowWindow {
 public:
  using A = Acc<T>;

  RowWindow(const Kernels<T>& loops, const ConvShape& shape)
      : loops_(loops),
        window_((shape.height - 1) * shape.dilation + 1),
        row_size_(kGroup * shape.packed_columns),
        memory_(window_ * row_size_),
        held_(window_, -1),
        rows_(shape.height) {}

  // From here on rows are those of `first_row` (R, S, C-stride), a sentence's first row at the group's first channel.
  void open(const T* first_row, int64_t row_count) {
    first_row_ = first_row;
    row_count_ = row_count;
    std::fill(held_.begin(), held_.end(), -1);
  }

  void prefetch(const ConvShape& shape, int64_t row) const {
    if (row >= 0 && row < row_count_) prefetch_row(shape, first_row_ + row * shape.columns * shape.stride);
  }

  // Pointers to rows start, start + dilation, ... (h of them); null where there is no such row.
  const A* const* rows(const ConvShape& shape, int64_t start) {
    for (int64_t i = 0; i < shape.height; ++i) {
      const int64_t row = start + i * shape.dilation;
      if (row < 0 || row >= row_count_) {
        rows_[i] = nullptr;
        continue;
      }
      const int64_t slot = row % window_;
      A* packed = memory_.get() + slot * row_size_;
      if (held_[slot] != row) {
        loops_.pack_row(shape, shape.left, first_row_ + row * shape.columns * shape.stride, packed);
        held_[slot] = row;
      }
      rows_[i] = packed;
    }
    return rows_.data();
  }

 private:
  const Kernels<T>& loops_;
  int64_t window_, row_size_;
  Scratch<A> memory_;
  std::vector<int64_t> held_;
  std::vector<const A*> rows_;
  const T* first_row_ = nullptr;
  int64_t row_count_ = 0;
};

// out[b, t, s, c] = sum over i, j of weight[c, 0, i, j] * x[b, t + first + i * dilation, s + (j - k / 2) * dilation, c]
// (the weight turned by 180 degrees if `flipped`); whatever lies outside x counts as zero.
template <class T>
void correlate(const Tensor& x, const Tensor& weight, bool flipped, int64_t dilation, int64_t first,
               const Tensor& out) {
  const int64_t batch = out.size(0), out_rows = out.size(1), columns = out.size(2), channels = out.size(3);
  if (out.numel() == 0) return;
  const int64_t in_rows = x.size(1), height = weight.size(2), width = weight.size(3);
  const Tensor packed_weight = pack_weight<T>(weight, flipped);
  const auto& loops = kernels<T>(level());
  const int64_t groups = ceil_div(channels, kGroup), row = columns * channels;
  // Rows are cut only as far as the threads need it, since each cut packs h - 1 rows twice.
  const int64_t wanted = 4 * at::get_num_threads(), cuts = std::min(out_rows, ceil_div(wanted, batch * groups));
  const int64_t step = ceil_div(out_rows, cuts);
  const ConvShape shape = conv_shape(columns, channels, height, width, dilation);
  const T* from = data<T>(x);
  T* to = mutable_data<T>(out);
  at::parallel_for(0, batch * cuts * groups, 1, [&](int64_t begin, int64_t end) {
    ConvShape part = shape;
    RowWindow<T> window(loops, shape);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / (cuts * groups), cut = task / groups % cuts, channel = task % groups * kGroup;
      part.channels = std::min(kGroup, channels - channel);
      window.open(from + b * in_rows * row + channel, in_rows);
      const Acc<T>* w = data<Acc<T>>(packed_weight) + channel * height * width;
      for (int64_t t = cut * step; t < std::min(out_rows, (cut + 1) * step); ++t) {
        T* target = to + (b * out_rows + t) * row + channel;
        window.prefetch(part, t + first + (height - 1) * dilation + 1);
        if (t + 1 < out_rows) prefetch_row(part, target + row);
        loops.correlate_row(part, window.rows(part, t + first), w, target);
      }
    }
  });
}

template <class T>
void weight_grad(const Tensor& x, const Tensor& grad, int64_t dilation, int64_t top, const Tensor& out) {
  using A = Acc<T>;
  const int64_t batch = grad.size(0), out_rows = grad.size(1), columns = grad.size(2), channels = grad.size(3);
  const int64_t in_rows = x.size(1), height = out.size(2), width = out.size(3), taps = height * width;
  if (grad.numel() == 0) {
    out.zero_();
    return;
  }
  const auto& loops = kernels<T>(level());
  const int64_t groups = ceil_div(channels, kGroup), row = columns * channels;
  // Chunks depend on the shape alone: enough for many threads, few enough for their sums to cost nothing.
  const int64_t cuts = std::min(out_rows, ceil_div(16, batch)), step = ceil_div(out_rows, cuts);
  const int64_t per_chunk = ceil_div(batch * cuts, 32), chunks = ceil_div(batch * cuts, per_chunk);
  const int64_t padded = padded_channels(channels);
  const ConvShape shape = conv_shape(columns, channels, height, width, dilation);
  Tensor sums = at::zeros({chunks, padded * taps}, x.options().dtype(wide_type(x)));
  const T* from = data<T>(x);
  const T* grads = data<T>(grad);
  A* partial = mutable_data<A>(sums);
  at::parallel_for(0, chunks * groups, 1, [&](int64_t begin, int64_t end) {
    ConvShape part = shape;
    RowWindow<T> window(loops, shape);
    Scratch<A> packed_grad(kGroup * shape.packed_columns);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / groups, channel = task % groups * kGroup;
      part.channels = std::min(kGroup, channels - channel);
      A* to = partial + (chunk * padded + channel) * taps;
      for (int64_t piece = chunk * per_chunk; piece < std::min(batch * cuts, (chunk + 1) * per_chunk); ++piece) {
        const int64_t b = piece / cuts, cut = piece % cuts;
        window.open(from + b * in_rows * row + channel, in_rows);
        for (int64_t t = cut * step; t < std::min(out_rows, (cut + 1) * step); ++t) {
          const T* source = grads + (b * out_rows + t) * row + channel;
          window.prefetch(part, t - top + (height - 1) * dilation + 1);
          if (t + 1 < out_rows) prefetch_row(part, source + row);
          loops.pack_row(part, 0, source, packed_grad.get());
          loops.add_weight_grad(part, window.rows(part, t - top), packed_grad.get(), to);
        }
      }
    }
  });
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    for (int64_t e = 0; e < padded * taps; ++e) partial[e] += partial[chunk * padded * taps + e];
  Tensor unpacked = at::empty(out.sizes(), sums.options());
  A* to = mutable_data<A>(unpacked);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t tap = 0; tap < taps; ++tap)
      to[c * taps + tap] = partial[(c / kLanes * taps + tap) * kLanes + c % kLanes];
  out.copy_(unpacked);
}

Tensor causal_depthwise_conv(const Tensor& x, const Tensor& weight, int64_t dilation, int64_t top) {
  const char* op = "causal_depthwise_conv";
  check_weight(op, weight);
  check_conv(op, x, weight.size(0), weight.size(2), weight.size(3), dilation, top);
  check_same_type(op, "x", x, "weight", weight);
  const int64_t rows = x.size(1) + top - (weight.size(2) - 1) * dilation;
  TORCH_CHECK(rows >= 0, op, ": ", x.size(1), " rows and top = ", top, " are too few for ", weight.size(2),
              " kernel rows at dilation ", dilation);
  Tensor out = at::empty({x.size(0), rows, x.size(2), x.size(3)}, x.options());
  const Tensor grid = x.contiguous();
  dispatch(op, x, [&](auto type) {
    using T = decltype(type);
    correlate<T>(grid, weight, false, dilation, -top, out);
  });
  return out;
}

Tensor causal_depthwise_conv_input_grad(const Tensor& grad, const Tensor& weight, int64_t dilation, int64_t top) {
  const char* op = "causal_depthwise_conv_input_grad";
  check_weight(op, weight);
  check_conv(op, grad, weight.size(0), weight.size(2), weight.size(3), dilation, top);
  check_same_type(op, "grad", grad, "weight", weight);
  const int64_t reach = (weight.size(2) - 1) * dilation, rows = grad.size(1) + reach - top;
  TORCH_CHECK(rows >= 0, op, ": top = ", top, " is more than ", grad.size(1), " rows of output reach");
  Tensor out = at::empty({grad.size(0), rows, grad.size(2), grad.size(3)}, grad.options());
  const Tensor grid = grad.contiguous();
  dispatch(op, grad, [&](auto type) {
    using T = decltype(type);
    correlate<T>(grid, weight, true, dilation, top - reach, out);
  });
  return out;
}

Tensor causal_depthwise_conv_weight_grad(const Tensor& x, const Tensor& grad, int64_t height, int64_t width,
                                         int64_t dilation, int64_t top) {
  const char* op = "causal_depthwise_conv_weight_grad";
  check_conv(op, x, grad.size(-1), height, width, dilation, top);
  check_conv(op, grad, x.size(3), height, width, dilation, top);
  check_same_type(op, "x", x, "grad", grad);
  TORCH_CHECK(grad.size(0) == x.size(0) && grad.size(2) == x.size(2) &&
                  grad.size(1) == x.size(1) + top - (height - 1) * dilation,
              op, ": grad ", grad.sizes(), " does not belong to x ", x.sizes());
  Tensor out = at::empty({x.size(3), 1, height, width}, x.options());
  const Tensor grid = x.contiguous(), grads = grad.contiguous();
  dispatch(op, x, [&](auto type) {
    using T = decltype(type);
    weight_grad<T>(grid, grads, dilation, top, out);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(attn2d, m) {
  m.def("causal_depthwise_conv(Tensor x, Tensor weight, int dilation, int top) -> Tensor", kTags);
  m.def("causal_depthwise_conv_input_grad(Tensor grad, Tensor weight, int dilation, int top) -> Tensor", kTags);
  m.def(
      "causal_depthwise_conv_weight_grad(Tensor x, Tensor grad, int height, int width, int dilation, int top) -> "
      "Tensor",
      kTags);
}

TORCH_LIBRARY_IMPL(attn2d, CPU, m) {
  m.impl("causal_depthwise_conv", causal_depthwise_conv);
  m.impl("causal_depthwise_conv_input_grad", causal_depthwise_conv_input_grad);
  m.impl("causal_depthwise_conv_weight_grad", causal_depthwise_conv_weight_grad);
}

}  // namespace attn2d
