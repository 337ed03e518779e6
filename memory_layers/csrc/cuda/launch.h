// How the kernels are launched: blocks, grids, shared memory, width of loads. The SIMT emulation runs these too.
#pragma once

#include <algorithm>
#include <type_traits>

#include "bag.h"
#include "rows.h"
#include "select.h"

namespace memory_layers::cuda {

constexpr int kSharedBytes = 48 << 10;  // what every device gives a block by default

#ifndef MEMORY_LAYERS_SIMT
template <class... P>
void launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, int bytes, cudaStream_t stream,
                   const std::type_identity_t<P>&... arguments) {
  kernel<<<grid, block, bytes, stream>>>(arguments...);
}

inline uintptr_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }
#endif

// Calls body with the number of columns, as an integral constant, that one instruction may read or write: 16 bytes of T
// where rows of dim and the tensors begin at multiples of that, else one.
template <class T, class Body, class... Tensors>
void with_width(int dim, const Body& body, const Tensors&... tensors) {
  constexpr int kWidth = 16 / sizeof(T);
  if (dim % kWidth == 0 && ((address(tensors) | ...) % 16) == 0) return body(std::integral_constant<int, kWidth>{});
  body(std::integral_constant<int, 1>{});
}

inline unsigned blocks(int64_t work, int64_t per_block) {
  return static_cast<unsigned>((work + per_block - 1) / per_block);
}

// Warps of a block that each need so many bytes of shared memory.
inline int select_warps(int bytes) { return std::max(1, std::min(kSelectWarps, kSharedBytes / bytes)); }

template <class S>
void launch(const Select<S>& task, bool softmax, cudaStream_t stream) {
  if (task.rows == 0) return;
  const int bytes = SelectMemory<S>::bytes(task.n, task.k), warps = select_warps(bytes);
  launch_kernel(softmax ? select_kernel<S, true> : select_kernel<S, false>, dim3(blocks(task.rows, warps)),
                dim3(warps * kWarp), warps * bytes, stream, task, candidates(task.k), bytes);
}

template <class S>
void launch(const SelectBackward<S>& task, cudaStream_t stream) {
  if (task.rows == 0) return;
  const int bytes = aligned(task.n * sizeof(S)), warps = select_warps(bytes);
  launch_kernel(select_backward_kernel<S>, dim3(blocks(task.rows, warps)), dim3(warps * kWarp), warps * bytes, stream,
                task, bytes);
}

// The threads of a bag's block: packs of columns, a power of two up to a warp, then whole warps; and groups of them.
struct BagShape {
  int columns, groups, bytes;
};

template <class S>
BagShape bag_shape(int packs, int width) {
  int columns = 1;
  while (columns < std::min(packs, kWarp)) columns *= 2;
  if (packs > kWarp) columns = std::min((packs + kWarp - 1) / kWarp * kWarp, kBagThreads);
  const int groups = kBagThreads / columns;
  constexpr int kWide = sizeof(Wide<S>);
  return {columns, groups,
          aligned(kBagStage * 8) + aligned(kBagStage * kWide) + aligned((groups - 1) * columns * width * kWide)};
}

template <class S>
void launch(const Bag<S>& task, cudaStream_t stream) {
  if (task.tokens == 0 || task.dim == 0) return;
  const auto run = [&](auto width) {
    const int packs = (task.dim + width - 1) / width;
    const BagShape shape = bag_shape<S>(packs, width);
    launch_kernel(bag_kernel<S, width>, dim3(static_cast<unsigned>(task.tokens), blocks(packs, shape.columns)),
                  dim3(shape.columns, shape.groups), shape.bytes, stream, task);
  };
  with_width<S>(task.dim, run, task.values, task.output);
}

template <class S>
void launch(const BagWeightsBackward<S>& task, cudaStream_t stream) {
  if (task.tokens == 0 || task.bag == 0) return;
  const auto run = [&](auto width) {
    launch_kernel(bag_weights_backward_kernel<S, width>, dim3(static_cast<unsigned>(task.tokens)), dim3(kBagThreads), 0,
                  stream, task);
  };
  with_width<S>(task.dim, run, task.values, task.grad);
}

template <class A, class Consumer, class... Tensors>
void launch_rows(const SortedPairs<A>& pairs, const Consumer& consumer, cudaStream_t stream,
                 const Tensors&... tensors) {
  if (pairs.pairs == 0) return;
  const auto run = [&](auto width) {
    launch_kernel(rows_kernel<A, width, Consumer>, dim3(blocks(pairs.pairs, kRowThreads / kWarp)), dim3(kRowThreads), 0,
                  stream, pairs, consumer);
  };
  with_width<A>(pairs.dim, run, pairs.grad, tensors...);
}

template <class A>
void launch(const SortedPairs<A>& pairs, const SquaredNorm<A>& task, cudaStream_t stream) {
  launch_rows(pairs, SquaredNormOfRow<A>{task}, stream);
}

template <class S>
void launch(const SortedPairs<Wide<S>>& pairs, const Rows<S>& task, cudaStream_t stream) {
  launch_rows(pairs, StoreRow<S>{task}, stream, task.rows);
}

template <class S>
void launch(const SortedPairs<Wide<S>>& pairs, const Adam<S>& task, cudaStream_t stream) {
  if (task.has_master) {
    launch_rows(pairs, AdamOnRow<S, true>{task}, stream, task.values, task.exp_avg, task.exp_avg_sq, task.master);
  } else {
    launch_rows(pairs, AdamOnRow<S, false>{task}, stream, task.values, task.exp_avg, task.exp_avg_sq);
  }
}

}  // namespace memory_layers::cuda
