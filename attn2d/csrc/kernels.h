// The inner loops of attn2d's CPU operators: one thread's work on plain pointers, without PyTorch.
//
// Axes: B batch, T target rows, S source columns, C channels (innermost), h x k kernel rows x columns.
// Every loop exists once per storage type and instruction set; `kernels<T>(level)` hands out a table of them.
#pragma once

#include <cstdint>

#include "formats.h"

namespace attn2d {

using native::Acc;
using native::bfloat16;
using native::Level;

// Channels that lie side by side in packed rows and packed weights.
constexpr int64_t kLanes = 16;
// Elements of a dropout mask that come from one vector of 16 Philox counters (8 x 16 bits each).
constexpr int64_t kDropoutBlock = 128;

// Geometry of the depthwise convolution's inner loops. A packed row holds `channels` of one grid row as
// [ceil(channels / 16)][packed_columns][16] accumulators: `left` zero columns, the row's columns, and zeros to the end.
struct ConvShape {
  int64_t columns;         // S
  int64_t stride;          // elements from one column of the grid to the next: C
  int64_t channels;        // of this group, at most C
  int64_t packed_columns;  // >= S + (k - 1) * dilation
  int64_t left;            // zero columns at the left: (k / 2) * dilation
  int64_t height;          // h
  int64_t width;           // k
  int64_t dilation;
};

// The mask of dropout: element e is dropped when its 16 random bits are below `threshold`.
struct DropoutMask {
  uint64_t seed;
  uint32_t threshold;  // round(p * 65536)
};

template <class T>
struct Kernels {
  using A = Acc<T>;

  // Copies one grid row (S columns of `channels`) into a packed row whose margins are zero already.
  void (*pack_row)(const ConvShape&, int64_t left, const T* row, A* packed);
  // out[s, c] = sum over i, j of weight[i, j, c] * rows[i][s + j * dilation, c]; a null row counts as zeros.
  // weight: [ceil(channels / 16)][h][k][16].
  void (*correlate_row)(const ConvShape&, const A* const* rows, const A* weight, T* out);
  // grad_weight[i, j, c] += sum over s of rows[i][s + j * dilation, c] * grad[s, c]; grad is packed with left = 0
  // and the same packed_columns.
  void (*add_weight_grad)(const ConvShape&, const A* const* rows, const A* grad, A* grad_weight);

  // out = (x + dropout(h)) * scale over elements [begin, end); begin is a multiple of kDropoutBlock.
  // x null: out = dropout(h) * scale. The kept are multiplied by `keep_scale`.
  void (*dropout)(DropoutMask, A keep_scale, A scale, const T* x, const T* h, T* out, int64_t begin, int64_t end);
  // Its gradients: grad_x = grad * scale, grad_h = grad * mask * keep_scale * scale.
  void (*dropout_grad)(DropoutMask, A keep_scale, A scale, const T* grad, T* grad_x, T* grad_h, int64_t begin,
                       int64_t end);

  // values[c], indices[c] = max and argmax over the S columns x[s, c] whose `padding[s]` is false; ties and NaN: lowest
  // index. No such column: zeros. gated: x has 2C channels and x[s, c] * sigmoid(x[s, C + c]) takes part.
  void (*max_row)(int64_t columns, int64_t channels, bool gated, const bool* padding, const T* x, T* values,
                  int64_t* indices);
  // Writes the gradient of max_row into grad_x, which is zero-filled here.
  void (*max_row_grad)(int64_t columns, int64_t channels, bool gated, const bool* padding, const T* x, const T* grad,
                       const int64_t* indices, T* grad_x);

  // Layer norm of one cell over its C channels; mean and rstd are returned for the backward.
  void (*layer_norm)(int64_t channels, double eps, const T* x, const T* weight, const T* bias, T* out, A* mean,
                     A* rstd);
  // grad_x of one cell, and the cell's part added to grad_weight[C] and grad_bias[C].
  void (*layer_norm_grad)(int64_t channels, const T* x, const T* weight, A mean, A rstd, const T* grad, T* grad_x,
                          A* grad_weight, A* grad_bias);
};

// The loops for `level`, or for the best level below it that this build has.
template <class T>
const Kernels<T>& kernels(Level level);

}  // namespace attn2d
