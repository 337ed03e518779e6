// Weighted sums of rows of a table, and the gradient of their weights. W columns are read at once: 16 bytes where rows
// are a multiple of that, else one.
#pragma once

#include "device.h"

namespace memory_layers::cuda {

constexpr int kBagThreads = 256;
constexpr int kBagStage = 128;  // slots and weights in shared memory at a time

// A block per token and blockDim.x packs of columns. Its groups (threadIdx.y) take every blockDim.y-th row of the bag;
// their sums are added in the order of the groups. blockDim depends on V alone, and so does the order of additions.
template <class S, int W>
__global__ void __launch_bounds__(kBagThreads, 4) bag_kernel(const Bag<S> task) {
  using A = Wide<S>;
  const int columns = blockDim.x, groups = blockDim.y;
  const int thread = threadIdx.y * columns + threadIdx.x;
  const int64_t token = blockIdx.x;
  const int column = (blockIdx.y * columns + threadIdx.x) * W;
  const bool inside = column < task.dim;
  Arena arena(0);
  const Shared<int64_t> slots = arena.take<int64_t>(kBagStage);
  const Shared<A> weights = arena.take<A>(kBagStage);
  const Shared<A> partial = arena.take<A>((groups - 1) * columns * W);
  A sum[W] = {};
  for (int base = 0; base < task.bag; base += kBagStage) {
    const int count = task.bag - base < kBagStage ? task.bag - base : kBagStage;
    __syncthreads();
    for (int e = thread; e < count; e += columns * groups) {
      const int64_t slot = task.slots[token * task.bag + base + e];
      DEVICE_CHECK(slot >= 0 && slot < task.n_slots);
      slots[e] = slot;
      weights[e] = task.weights[token * task.bag + base + e];
    }
    __syncthreads();
    if (inside) {
#pragma unroll 8
      for (int e = threadIdx.y; e < count; e += groups) {
        const int64_t slot = slots[e];
        const A weight = weights[e];
        const Pack<S, W> row = load<W>(task.values, slot * task.dim + column);
#pragma unroll
        for (int w = 0; w < W; ++w) sum[w] += weight * widen(row.value[w]);
      }
    }
  }
  if (groups > 1) {
    if (threadIdx.y > 0) {
#pragma unroll
      for (int w = 0; w < W; ++w) partial[(w * (groups - 1) + threadIdx.y - 1) * columns + threadIdx.x] = sum[w];
    }
    __syncthreads();
    if (threadIdx.y > 0) return;
    for (int group = 0; group < groups - 1; ++group) {
#pragma unroll
      for (int w = 0; w < W; ++w) sum[w] += partial[(w * (groups - 1) + group) * columns + threadIdx.x];
    }
  }
  if (inside) {
    Pack<S, W> pack;
#pragma unroll
    for (int w = 0; w < W; ++w) narrow(pack.value[w], sum[w]);
    store<W>(task.output, token * task.dim + column, pack);
  }
}

// A block per token, each of its warps every so many-th row: dot products of rows of the table with the token's
// gradient, which stays in the first-level cache.
template <class S, int W>
__global__ void __launch_bounds__(kBagThreads, 4) bag_weights_backward_kernel(const BagWeightsBackward<S> task) {
  using A = Wide<S>;
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t token = blockIdx.x;
  for (int e = warp; e < task.bag; e += warps) {
    const int64_t slot = task.slots[token * task.bag + e];
    DEVICE_CHECK(slot >= 0 && slot < task.n_slots);
    A sum = 0;
#pragma unroll 4
    for (int column = lane * W; column < task.dim; column += kWarp * W) {
      const Pack<S, W> row = load<W>(task.values, slot * task.dim + column);
      const Pack<A, W> grad = load<W>(task.grad, token * task.dim + column);
#pragma unroll
      for (int w = 0; w < W; ++w) sum += grad.value[w] * widen(row.value[w]);
    }
    sum = warp_sum(sum);
    if (lane == 0) task.weights_grad[token * task.bag + e] = sum;
  }
}

}  // namespace memory_layers::cuda
