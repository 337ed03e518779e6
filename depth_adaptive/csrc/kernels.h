// The inner loop of depth_adaptive's CPU operator: one thread's work on plain pointers, without PyTorch.
//
// It exists once per number format and instruction set; `kernels<T>(level)` hands out a table of it.
#pragma once

#include <cstdint>

#include "formats.h"

namespace depth_adaptive {

using native::Acc;
using native::bfloat16;
using native::Level;

template <class T>
struct Kernels {
  using A = Acc<T>;

  // One query (heads * width) attends to the keys and values at `count` places of `memory`, whose rows hold a key and
  // then a value, heads * width each. Places below 0 take no part; without any other, the output is zero.
  // scores: memory of heads * count.
  void (*attend)(int64_t heads, int64_t width, int64_t count, const int64_t* places, const T* query, const T* memory,
                 A* scores, T* out);
};

// The loop for `level`, or for the best level below it that this build has.
template <class T>
const Kernels<T>& kernels(Level level);

}  // namespace depth_adaptive
