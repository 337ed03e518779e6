// The kernels that the package has: number formats are chosen here, everything else in launch.h.
#include "kernels.h"
#include "launch.h"

namespace memory_layers::cuda {

template void launch(const Select<float>&, bool, cudaStream_t);
template void launch(const Select<double>&, bool, cudaStream_t);
template void launch(const SelectBackward<float>&, cudaStream_t);
template void launch(const SelectBackward<double>&, cudaStream_t);

template void launch(const SortedPairs<float>&, const SquaredNorm<float>&, cudaStream_t);
template void launch(const SortedPairs<double>&, const SquaredNorm<double>&, cudaStream_t);

#define FOR_TABLES_OF(S)                                                           \
  template void launch(const Bag<S>&, cudaStream_t);                               \
  template void launch(const BagWeightsBackward<S>&, cudaStream_t);                \
  template void launch(const SortedPairs<Wide<S>>&, const Rows<S>&, cudaStream_t); \
  template void launch(const SortedPairs<Wide<S>>&, const Adam<S>&, cudaStream_t);

FOR_TABLES_OF(float)
FOR_TABLES_OF(double)
FOR_TABLES_OF(float16)
FOR_TABLES_OF(bfloat16)

}  // namespace memory_layers::cuda
