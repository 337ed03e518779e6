// The gradient of the table, row by row, from its factors: row r's is the sum of weights[t, b] · grad[t] over the
// pairs (t, b) with slots[t, b] = r. The pairs are sorted by slot, stably, so a warp sums a row's in the order of their
// positions, and passes the sums to a consumer without writing them: the squared norm, Adam, or the rows of a sparse
// gradient. Nothing depends on how warps are scheduled.
#pragma once

#include "device.h"

namespace memory_layers::cuda {

constexpr int kRowThreads = 128;

// One warp per pair; if it is not the first of its slot, there is nothing to do. A lane has U packs of columns at a
// time.
template <class A, int W, class Consumer>
__global__ void __launch_bounds__(kRowThreads, 6) rows_kernel(const SortedPairs<A> task, Consumer consumer) {
  constexpr int U = 4;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp;
  if (pair >= task.pairs) return;  // the whole warp
  const int64_t slot = task.slots[pair];
  DEVICE_CHECK(slot >= 0 && slot < task.n_slots);
  if (pair > 0 && task.slots[pair - 1] == slot) return;
  const int64_t row = consumer.row(pair, slot) * task.dim;
  for (int tile = 0; tile < task.dim; tile += kWarp * W * U) {
    A sum[U][W] = {};
    int run = kWarp;
    for (int64_t base = pair; run == kWarp; base += kWarp) {
      // The lanes fetch 32 pairs at once; those of this slot are the first ones.
      const bool mine = base + lane < task.pairs && task.slots[base + lane] == slot;
      const int32_t position = mine ? static_cast<int32_t>(task.positions[base + lane]) : 0;
      const A weight = mine ? static_cast<A>(task.weights[position]) : A{0};
      const int32_t token = position / task.bag;
      run = __popc(__ballot_sync(kAll, mine));
#pragma unroll 2
      for (int e = 0; e < run; ++e) {
        const A factor = __shfl_sync(kAll, weight, e);
        const int64_t source = static_cast<int64_t>(__shfl_sync(kAll, token, e)) * task.dim;
#pragma unroll
        for (int u = 0; u < U; ++u) {
          const int column = tile + (u * kWarp + lane) * W;
          if (column < task.dim) {
            const Pack<A, W> grad = load<W>(task.grad, source + column);
#pragma unroll
            for (int w = 0; w < W; ++w) sum[u][w] += factor * grad.value[w];
          }
        }
      }
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int column = tile + (u * kWarp + lane) * W;
      if (column < task.dim) consumer.take(row + column, sum[u]);
    }
  }
  consumer.finish(pair, lane);
}

// Consumers: row() is where in their tensors the gradient of a slot belongs, take() gets W columns of it, and finish()
// is called once by all lanes.

template <class A>
struct SquaredNormOfRow {
  SquaredNorm<A> task;
  double sum = 0;

  __device__ __forceinline__ int64_t row(int64_t, int64_t) { return 0; }
  template <int W>
  __device__ __forceinline__ void take(int64_t, const A (&grad)[W]) {
#pragma unroll
    for (int w = 0; w < W; ++w) sum += static_cast<double>(grad[w]) * grad[w];
  }
  __device__ __forceinline__ void finish(int64_t pair, int lane) {
    sum = warp_sum(sum);
    if (lane == 0) task.norms[pair] = sum;
  }
};

template <class S>
struct StoreRow {
  Rows<S> task;

  __device__ __forceinline__ int64_t row(int64_t pair, int64_t) { return task.ranks[pair]; }
  template <int W>
  __device__ __forceinline__ void take(int64_t at, const Wide<S> (&grad)[W]) {
    Pack<S, W> pack;
#pragma unroll
    for (int w = 0; w < W; ++w) narrow(pack.value[w], grad[w]);
    store<W>(task.rows, at, pack);
  }
  __device__ __forceinline__ void finish(int64_t, int) {}
};

// As torch.optim.SparseAdam, with decoupled weight decay.
template <class S, bool kMaster>
struct AdamOnRow {
  using A = Wide<S>;
  Adam<S> task;

  __device__ __forceinline__ int64_t row(int64_t, int64_t slot) { return slot; }
  template <int W>
  __device__ __forceinline__ void take(int64_t at, const A (&grad)[W]) {
    const AdamNumbers<A>& adam = task.numbers;
    Pack<S, W> value;
    Pack<A, W> m = load<W>(task.exp_avg, at), v = load<W>(task.exp_avg_sq, at), wide;
    if constexpr (kMaster) {
      wide = load<W>(task.master, at);
    } else {
      value = load<W>(task.values, at);
    }
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const A g = grad[w] * adam.scale;
      m.value[w] = adam.beta1 * m.value[w] + adam.rest1 * g;
      v.value[w] = adam.beta2 * v.value[w] + adam.rest2 * g * g;
      if constexpr (!kMaster) wide.value[w] = widen(value.value[w]);
      wide.value[w] = wide.value[w] * adam.decay - adam.size * m.value[w] / (std::sqrt(v.value[w]) + adam.eps);
      narrow(value.value[w], wide.value[w]);
    }
    store<W>(task.values, at, value);
    store<W>(task.exp_avg, at, m);
    store<W>(task.exp_avg_sq, at, v);
    if constexpr (kMaster) store<W>(task.master, at, wide);
  }
  __device__ __forceinline__ void finish(int64_t, int) {}
};

}  // namespace memory_layers::cuda
