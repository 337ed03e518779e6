// The sort of (slot, position) pairs, CUB's; apart from the kernels, for it takes long to compile.
#include <cub/device/device_radix_sort.cuh>

#include "kernels.h"

namespace memory_layers::cuda {

cudaError_t sort_pairs(void* temporary, size_t& bytes, const int64_t* slots, int64_t* sorted_slots,
                       const int32_t* positions, int32_t* sorted_positions, int64_t pairs, int64_t n_slots,
                       cudaStream_t stream) {
  int bits = 1;  // of the largest slot
  while (bits < 63 && (n_slots - 1) >> bits != 0) ++bits;
  return cub::DeviceRadixSort::SortPairs(temporary, bytes, slots, sorted_slots, positions, sorted_positions,
                                         static_cast<int>(pairs), 0, bits, stream);
}

}  // namespace memory_layers::cuda
