// The inner loops of depth_adaptive's CPU operators: one thread's work on plain pointers, without PyTorch.
//
// They exist once per number format and instruction set; `kernels<T>(level)` hands out a table of them.
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

  // Cross-entropy of one row of `count` logits. likelihood: the target's log-probability; total: the sum of all
  // log-probabilities; right: whether no logit is larger than the target's, nor as large before it. If `gradient`, the
  // logits become (kept + count * spread) * probability - spread, at the target - kept as well. scratch: memory of
  // count.
  void (*cross_entropy)(int64_t count, int64_t target, A kept, A spread, bool gradient, T* logits, A* scratch,
                        A* likelihood, A* total, bool* right);

  // The largest probability of one row of `count` logits.
  A (*top_probability)(int64_t count, const T* logits);
};

// The loops for `level`, or for the best level below it that this build has.
template <class T>
const Kernels<T>& kernels(Level level);

}  // namespace depth_adaptive
