// attn2d's CPU operators: checks, scratch memory and threads around the inner loops of kernels.h, and their
// registration with PyTorch. Gradients and fake implementations are registered by ops.py.
//
// Axes: B batch, T target rows, R input rows, S source columns, C channels (innermost), h x k kernel rows x columns.
// No result depends on the number of threads: work that sums is cut into chunks that depend on the shape alone, and
// the chunks' sums are added in order.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "tensors.h"

namespace attn2d {
namespace {

using at::Tensor;
using native::ceil_div;
using native::data;
using native::dispatch;
using native::level;
using native::mutable_data;
using native::wide_type;

// Channels that one task of a convolution works on: whole cache lines of both float and bfloat16.
constexpr int64_t kGroup = 64;

void check_same_type(const char* op, const char* first, const Tensor& a, const char* second, const Tensor& b) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), op, ": ", first, " and ", second, " must have one dtype, given ",
              a.scalar_type(), " and ", b.scalar_type());
}

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

int64_t padded_channels(int64_t channels) { return ceil_div(channels, kLanes) * kLanes; }

// ---- depthwise convolution -----------------------------------------------------------------------------------------

// Asks for one row's group of channels (S pieces, C apart: a pattern that hardware does not foresee) ahead of its use.
template <class T>
void prefetch_row(const ConvShape& shape, const T* row) {
#if defined(__GNUC__) || defined(__clang__)
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t s = 0; s < shape.columns; ++s, row += shape.stride)
    for (int64_t c = 0; c < shape.channels; c += line) __builtin_prefetch(row + c, 0, 2);
#endif
}

// Rows of one sentence and one group of channels in packed form, packed when first asked for: a ring of `window` rows.
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

ConvShape conv_shape(int64_t columns, int64_t channels, int64_t height, int64_t width, int64_t dilation) {
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

void check_conv(const char* op, const Tensor& grid, int64_t channels, int64_t height, int64_t width, int64_t dilation,
                int64_t top) {
  TORCH_CHECK(grid.dim() == 4, op, ": the grid must be (B, T, S, C), given ", grid.sizes());
  TORCH_CHECK(grid.size(3) == channels, op, ": the weight has ", channels, " channels, the grid ", grid.size(3));
  TORCH_CHECK(height >= 1 && width >= 1 && width % 2 == 1, op,
              ": the kernel must have at least one row and an odd number of columns, given ", height, " x ", width);
  TORCH_CHECK(dilation >= 1, op, ": dilation must be at least 1, given ", dilation);
  TORCH_CHECK(dilation <= 1 << 20 && height <= 1 << 12 && width <= 1 << 12, op, ": a kernel of ", height, " x ", width,
              " at dilation ", dilation, " is out of all proportion");
  TORCH_CHECK(top >= 0, op, ": top must not be negative, given ", top);
}

void check_weight(const char* op, const Tensor& weight) {
  TORCH_CHECK(weight.dim() == 4 && weight.size(1) == 1, op, ": the weight must be (C, 1, h, k), given ",
              weight.sizes());
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

// ---- dropout -------------------------------------------------------------------------------------------------------

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

// ---- maximum over the source ---------------------------------------------------------------------------------------

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

// ---- layer norm ----------------------------------------------------------------------------------------------------

void check_norm(const char* op, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& padding) {
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 1 && weight.size(0) == x.size(-1) && x.size(-1) > 0, op, ": x ",
              x.sizes(), " and weight ", weight.sizes(), " must share a last axis of at least one channel");
  check_same_type(op, "x", x, "weight", weight);
  if (padding)
    TORCH_CHECK(padding->scalar_type() == at::kBool && padding->sizes() == x.sizes().slice(0, x.dim() - 1), op,
                ": the padding mask must be bool of x's shape without channels, given ", padding->scalar_type(), " ",
                padding->sizes(), " for ", x.sizes());
}

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

// ---- decoding ------------------------------------------------------------------------------------------------------

// Normalises one row of a sentence (S, C), zeros where padded, and packs it with its margins of zeros.
template <class T>
void norm_and_pack(const Kernels<T>& loops, const ConvShape& shape, double eps, const T* x, const T* weight,
                   const T* bias, const bool* padding, T* normed, Acc<T>* packed) {
  Acc<T> mean, rstd;
  for (int64_t s = 0; s < shape.columns; ++s) {
    T* to = normed + s * shape.stride;
    if (padding && padding[s])
      std::memset(static_cast<void*>(to), 0, shape.stride * sizeof(T));
    else
      loops.layer_norm(shape.stride, eps, x + s * shape.stride, weight, bias, to, &mean, &rstd);
  }
  const int64_t before = shape.left * kLanes, row = shape.columns * kLanes, whole = shape.packed_columns * kLanes;
  for (int64_t block = 0; block < ceil_div(shape.channels, kLanes); ++block) {
    Acc<T>* to = packed + block * whole;
    std::fill(to, to + before, Acc<T>(0));
    std::fill(to + before + row, to + whole, Acc<T>(0));
  }
  loops.pack_row(shape, shape.left, normed, packed);
}

// One row of a residual layer's first half, with what it needs of the rows before in the form that it left them in:
// row = norm(x), joined = scale (x + conv(rows..., row)), normed = next norm(joined).
// rows: those before, the oldest first, each (B', ceil(C / 16), S + margins, 16) accumulators; origins (rows, B): which
// sentence of each row every sentence of x continues. Rows that are missing count as zeros.
std::tuple<Tensor, Tensor, Tensor> residual_conv_step(const Tensor& x, at::TensorList rows,
                                                      const std::optional<Tensor>& origins, const Tensor& weight,
                                                      int64_t dilation, double scale, const Tensor& norm_weight,
                                                      const Tensor& norm_bias, double eps, const Tensor& next_weight,
                                                      const Tensor& next_bias, double next_eps,
                                                      const std::optional<Tensor>& padding) {
  const char* op = "residual_conv_step";
  check_weight(op, weight);
  check_conv(op, x, weight.size(0), weight.size(2), weight.size(3), dilation, 0);
  TORCH_CHECK(x.size(1) == 1, op, ": one row at a time, given ", x.sizes());
  check_same_type(op, "x", x, "weight", weight);
  for (const Tensor* parameter : {&norm_weight, &norm_bias, &next_weight, &next_bias})
    check_norm(op, x, *parameter, std::nullopt);
  const int64_t batch = x.size(0), columns = x.size(2), channels = x.size(3), count = rows.size();
  TORCH_CHECK(!padding || (padding->scalar_type() == at::kBool && padding->dim() == 2 && padding->size(0) == batch &&
                           padding->size(1) == columns),
              op, ": the padding mask must be bool (B, S) = (", batch, ", ", columns, ")");
  const ConvShape shape = [&] {
    ConvShape found = conv_shape(columns, channels, weight.size(2), weight.size(3), dilation);
    found.stride = found.channels = channels;
    return found;
  }();
  const int64_t blocks = ceil_div(channels, kLanes), row_size = blocks * shape.packed_columns * kLanes;
  const auto form = x.options().dtype(wide_type(x));
  TORCH_CHECK(count == 0 || (origins && origins->scalar_type() == at::kLong && origins->dim() == 2 &&
                             origins->size(0) == count && origins->size(1) == batch),
              op, ": origins must be int64 (rows, B) = (", count, ", ", batch, ")");
  const Tensor from = count ? origins->contiguous() : Tensor();
  const int64_t* origin = count ? data<int64_t>(from) : nullptr;
  for (int64_t r = 0; r < count; ++r) {
    const Tensor& row = rows[r];
    TORCH_CHECK(row.is_contiguous() && row.scalar_type() == wide_type(x) && row.dim() == 4 && row.size(1) == blocks &&
                    row.size(2) == shape.packed_columns && row.size(3) == kLanes,
                op, ": row ", r, " is not one that this operator returned for such an x: ", row.sizes());
    for (int64_t b = 0; b < batch; ++b)
      TORCH_CHECK_INDEX(origin[r * batch + b] >= 0 && origin[r * batch + b] < row.size(0), op, ": origin ",
                        origin[r * batch + b], " is outside row ", r, " of ", row.size(0));
  }
  const Tensor grid = x.contiguous(), mask = padding ? padding->contiguous() : Tensor();
  const Tensor w = norm_weight.contiguous(), bias = norm_bias.contiguous();
  const Tensor next_w = next_weight.contiguous(), next_b = next_bias.contiguous();
  Tensor joined = at::empty_like(grid), normed = at::empty_like(grid);
  Tensor packed = at::empty({batch, blocks, shape.packed_columns, kLanes}, form);
  dispatch(op, x, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    const auto& loops = kernels<T>(level());
    const Tensor packed_weight = pack_weight<T>(weight, false);
    std::vector<const A*> starts(count);
    for (int64_t r = 0; r < count; ++r) starts[r] = data<A>(rows[r]);
    at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      std::vector<const A*> taps(shape.height);
      for (int64_t b = begin; b < end; ++b) {
        const int64_t cells = b * columns * channels;
        const T* source = data<T>(grid) + cells;
        T* sum = mutable_data<T>(joined) + cells;
        T* next = mutable_data<T>(normed) + cells;
        A* row = mutable_data<A>(packed) + b * row_size;
        norm_and_pack<T>(loops, shape, eps, source, data<T>(w), data<T>(bias),
                         padding ? data<bool>(mask) + b * columns : nullptr, next, row);
        for (int64_t i = 0; i < shape.height; ++i) {
          const int64_t r = count - (shape.height - 1 - i) * dilation;  // the new row stands at `count`
          taps[i] = r < 0 ? nullptr : r == count ? row : starts[r] + origin[r * batch + b] * row_size;
        }
        loops.correlate_row(shape, taps.data(), data<A>(packed_weight), next);  // `next` is free again
        loops.dropout({0, 0}, 1, scale, source, next, sum, 0, columns * channels);
        A mean, rstd;
        for (int64_t s = 0; s < columns; ++s)
          loops.layer_norm(channels, next_eps, sum + s * channels, data<T>(next_w), data<T>(next_b),
                           next + s * channels, &mean, &rstd);
      }
    });
  });
  return {joined, normed, packed};
}

}  // namespace

TORCH_LIBRARY(attn2d, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("causal_depthwise_conv(Tensor x, Tensor weight, int dilation, int top) -> Tensor", tags);
  m.def("causal_depthwise_conv_input_grad(Tensor grad, Tensor weight, int dilation, int top) -> Tensor", tags);
  m.def(
      "causal_depthwise_conv_weight_grad(Tensor x, Tensor grad, int height, int width, int dilation, int top) -> "
      "Tensor",
      tags);
  m.def("dropout(Tensor h, float p, Tensor seed) -> Tensor", tags);
  m.def("dropout_residual(Tensor x, Tensor h, float p, float scale, Tensor seed) -> Tensor", tags);
  m.def("dropout_residual_grad(Tensor grad, float p, float scale, Tensor seed) -> (Tensor, Tensor)", tags);
  m.def("max_over_source(Tensor x, Tensor padding, bool gated) -> (Tensor, Tensor)", tags);
  m.def("max_over_source_grad(Tensor grad, Tensor indices, Tensor x, Tensor padding, bool gated) -> Tensor", tags);
  m.def(
      "layer_norm_masked(Tensor x, Tensor weight, Tensor bias, float eps, Tensor? padding) -> "
      "(Tensor, Tensor, Tensor)",
      tags);
  m.def(
      "layer_norm_masked_grad(Tensor grad, Tensor x, Tensor weight, Tensor mean, Tensor rstd, Tensor? padding) -> "
      "(Tensor, Tensor, Tensor)",
      tags);
  m.def(
      "residual_conv_step(Tensor x, Tensor[] rows, Tensor? origins, Tensor weight, int dilation, float scale, "
      "Tensor norm_weight, Tensor norm_bias, float eps, Tensor next_weight, Tensor next_bias, float next_eps, "
      "Tensor? padding) -> (Tensor, Tensor, Tensor)",
      tags);
}

TORCH_LIBRARY_IMPL(attn2d, CPU, m) {
  m.impl("causal_depthwise_conv", causal_depthwise_conv);
  m.impl("causal_depthwise_conv_input_grad", causal_depthwise_conv_input_grad);
  m.impl("causal_depthwise_conv_weight_grad", causal_depthwise_conv_weight_grad);
  m.impl("dropout", dropout);
  m.impl("dropout_residual", dropout_residual);
  m.impl("dropout_residual_grad", dropout_residual_grad);
  m.impl("max_over_source", max_over_source);
  m.impl("max_over_source_grad", max_over_source_grad);
  m.impl("layer_norm_masked", layer_norm_masked);
  m.impl("layer_norm_masked_grad", layer_norm_masked_grad);
  m.impl("residual_conv_step", residual_conv_step);
}

}  // namespace attn2d
