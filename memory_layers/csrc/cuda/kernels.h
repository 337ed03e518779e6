// The launches of the kernels, for ops.cpp: no device code on that side, no PyTorch on the other. All are asynchronous
// on the stream, and nothing is launched for empty work; the caller looks at cudaGetLastError.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "tasks.h"

namespace memory_layers::cuda {

// S: float or double.
template <class S>
void launch(const Select<S>& task, bool softmax, cudaStream_t stream);
template <class S>
void launch(const SelectBackward<S>& task, cudaStream_t stream);

// S: float, double, float16 or bfloat16.
template <class S>
void launch(const Bag<S>& task, cudaStream_t stream);
template <class S>
void launch(const BagWeightsBackward<S>& task, cudaStream_t stream);
template <class A>
void launch(const SortedPairs<A>& pairs, const SquaredNorm<A>& task, cudaStream_t stream);
template <class S>
void launch(const SortedPairs<Wide<S>>& pairs, const Rows<S>& task, cudaStream_t stream);
template <class S>
void launch(const SortedPairs<Wide<S>>& pairs, const Adam<S>& task, cudaStream_t stream);

// Sorts (slot, position) pairs by slot, stably. Where temporary is null it writes the bytes needed there instead.
cudaError_t sort_pairs(void* temporary, size_t& bytes, const int64_t* slots, int64_t* sorted_slots,
                       const int32_t* positions, int32_t* sorted_positions, int64_t pairs, int64_t n_slots,
                       cudaStream_t stream);

}  // namespace memory_layers::cuda
