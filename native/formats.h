// Number formats and instruction sets of the CPU operators, without PyTorch. The extensions of all plugins share this
// folder.
#pragma once

#include <cstdint>

namespace native {

// Storage of bfloat16; arithmetic on it is done in float.
struct bfloat16 {
  uint16_t bits;
};

// What T is accumulated in.
template <class T>
struct Accumulator {
  using type = T;
};
template <>
struct Accumulator<bfloat16> {
  using type = float;
};
template <class T>
using Acc = typename Accumulator<T>::type;

enum class Level { baseline, avx2, avx512 };

}  // namespace native
