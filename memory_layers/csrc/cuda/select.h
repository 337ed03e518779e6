// The K best of the N·N sums of two rows of half scores, and the softmax of their scores: one warp per token and head.
//
// Of equal sums the lowest slot i·N + j comes first (order.h). Sums are one floating-point addition each.
//
// With both halves sorted, the sum at ranks (p, q) is no larger than any at (p' <= p, q' <= q), for rounding is
// monotone. So the K best *values* are among the pairs with (p + 1)(q + 1) <= K, and only where a pair just beyond
// those equals the K-th best value can another slot of that value belong to the result. Then the rows i that reach the
// value are searched in the order of the slots; each but K of them adds to the result, so there are at most 2K.
//
// The kernel's steps, each a function of its own:
//   select_half       the K best of a half, sorted
//   append_nan_sums   sums that are NaN, which come first
//   gather_candidates the sums with (p + 1)(q + 1) <= K, and the largest of those just beyond
//   keep_certain      the candidates that surely belong to the result, as slots
//   append_equal_sums further slots of the K-th best value
//   write_results     scores or their softmax and slots, sorted
#pragma once

#include <algorithm>

#include "order.h"
#include "top.h"

namespace memory_layers::cuda {

constexpr int kSelectWarps = 4;  // the most warps of a block

// The number of pairs with (p + 1)(q + 1) <= k.
inline int candidates(int k) {
  int count = 0;
  for (int p = 1; p <= k; ++p) count += k / p;
  return count;
}

// The shared memory of one warp.
template <class S>
struct SelectMemory {
  Shared<Key<S>> keys;            // of one half, then of the candidates
  Shared<uint16_t> pairs;         // candidates: p·kMaxK + q
  Shared<Key<S>> half_keys;       // two lists of k + 1, sorted: the best and the next
  Shared<uint16_t> half_places;   // two lists of k
  Shared<Key<S>> taken_keys;      // k, unsorted
  Shared<uint32_t> taken_places;  // k: places among `keys`, then slots

  __device__ __forceinline__ SelectMemory(Arena arena, int n, int k, int pairs_count) {
    keys = arena.take<Key<S>>(n > pairs_count ? n : pairs_count);
    pairs = arena.take<uint16_t>(pairs_count);
    half_keys = arena.take<Key<S>>(2 * (k + 1));
    half_places = arena.take<uint16_t>(2 * k);
    taken_keys = arena.take<Key<S>>(k);
    taken_places = arena.take<uint32_t>(k);
  }

  static int bytes(int n, int k) {
    constexpr int kKey = sizeof(Key<S>);
    const int pairs_count = candidates(k);
    return aligned(std::max(n, pairs_count) * kKey) + aligned(pairs_count * 2) + aligned(2 * (k + 1) * kKey) +
           aligned(2 * k * 2) + aligned(k * kKey) + aligned(k * 4);
  }
};

// The two rows of half scores of a token and head.
template <class S>
struct Halves {
  Global<const S> first, second;
  int n;

  __device__ __forceinline__ Halves(const Select<S>& task, int64_t row)
      : first(task.half_scores + (row / task.heads * task.token_stride + row % task.heads * task.head_stride)),
        second(first + task.half_stride),
        n(task.n) {}
};

// The largest and the smallest key of a half.
template <class S>
struct Range {
  Key<S> most, least;
};

// Writes the k best of a half, sorted, and the next key to memory.half_keys, and their places to memory.half_places.
template <class S>
__device__ __forceinline__ Range<S> select_half(const SelectMemory<S>& memory, Global<const S> scores, int half, int n,
                                                int k) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll 4
  for (int i = lane; i < n; i += kWarp) memory.keys[i] = key_of<S>(scores[i]);
  __syncwarp();
  const auto bounds = bounds_of<Key<S>>(memory.keys, n);
  const auto threshold = bisect<Key<S>>(memory.keys, n, k, bounds);
  const auto taken = take<Key<S>>(memory.keys, n, threshold, memory.taken_keys, memory.taken_places);
  __syncwarp();
  for (int e = lane; e < k; e += kWarp) {
    const Key<S> key = memory.taken_keys[e];
    const uint32_t place = memory.taken_places[e];
    const int rank = rank_of<Key<S>>(key, place, memory.taken_keys, memory.taken_places, k);
    memory.half_keys[half * (k + 1) + rank] = key;
    memory.half_places[half * k + rank] = static_cast<uint16_t>(place);
  }
  if (lane == 0) memory.half_keys[half * (k + 1) + k] = taken.next;
  __syncwarp();
  return {bounds.most, bounds.least};
}

// Whether +inf of one half and -inf of the other make sums that are NaN.
template <class S>
__device__ __forceinline__ bool has_opposite_infinities(const Range<S>& first, const Range<S>& second) {
  return (first.most == kInf<S> && second.least == kNegInf<S>) || (second.most == kInf<S> && first.least == kNegInf<S>);
}

// Appends the slots of the pairs (i, j) for which `pair` holds, ascending, until there are k; `row` says where to look.
template <class K, class Row, class Pair>
__device__ int append_pairs(int taken, int k, int n, K key, Shared<K> keys, Shared<uint32_t> slots, Row row,
                            Pair pair) {
  const int lane = threadIdx.x % kWarp;
  const unsigned below = (1u << lane) - 1;
  for (int base = 0; base < n && taken < k; base += kWarp) {
    unsigned rows = __ballot_sync(kAll, base + lane < n && row(base + lane));
    for (; rows != 0 && taken < k; rows &= rows - 1) {
      const int i = base + __ffs(rows) - 1;
      for (int start = 0; start < n && taken < k; start += kWarp) {
        const int j = start + lane;
        const bool hit = j < n && pair(i, j);
        const unsigned hits = __ballot_sync(kAll, hit);
        const int at = taken + __popc(hits & below);
        if (hit && at < k) {
          keys[at] = key;
          slots[at] = i * n + j;
        }
        taken += __popc(hits);
      }
    }
  }
  return taken < k ? taken : k;
}

// The first k slots whose sums are NaN; returns how many there are. With a NaN in a half there are at least n >= k.
template <class S>
__device__ __forceinline__ int append_nan_sums(const SelectMemory<S>& memory, const Halves<S>& halves, int k,
                                               const Range<S>& second) {
  const auto row_has_nan = [&](int i) {
    const Key<S> key = key_of<S>(halves.first[i]);
    return key == kNan<S> || second.most == kNan<S> || (key == kInf<S> && second.least == kNegInf<S>) ||
           (key == kNegInf<S> && second.most == kInf<S>);
  };
  const auto is_nan = [&](int i, int j) {
    const S sum = halves.first[i] + halves.second[j];
    return sum != sum;
  };
  const int taken =
      append_pairs<Key<S>>(0, k, halves.n, kNan<S>, memory.taken_keys, memory.taken_places, row_has_nan, is_nan);
  __syncwarp();
  return taken;
}

template <class S>
struct Candidates {
  int count;      // sums with (p + 1)(q + 1) <= rest
  Key<S> beyond;  // the largest of those just beyond
};

// Writes the candidates for the `rest` best sums to memory.keys and memory.pairs.
template <class S>
__device__ __forceinline__ Candidates<S> gather_candidates(const SelectMemory<S>& memory, int n, int k, int rest) {
  const int lane = threadIdx.x % kWarp;
  const unsigned below = (1u << lane) - 1;
  const int length = k < n ? k + 1 : k;
  Key<S> beyond = 0;
  int count = 0;
  for (int p = 0; p <= rest && p < length; ++p) {
    const S a = score_of<S>(memory.half_keys[p]);
    for (int base = 0; base < length && (p + 1) * base <= rest; base += kWarp) {
      const int q = base + lane;
      const bool inside = (p + 1) * (q + 1) <= rest, border = !inside && (p + 1) * q <= rest;
      const unsigned insiders = __ballot_sync(kAll, inside);
      if ((inside || border) && q < length) {
        const Key<S> key = sum_key<S>(a, score_of<S>(memory.half_keys[k + 1 + q]));
        if (inside) {
          const int at = count + __popc(insiders & below);
          memory.keys[at] = key;
          memory.pairs[at] = static_cast<uint16_t>(p * kMaxK + q);
        } else {
          beyond = key > beyond ? key : beyond;
        }
      }
      count += __popc(insiders);
    }
  }
  __syncwarp();
  return {count, warp_max(beyond)};
}

// Keeps, of the candidates taken from place `begin` on, those above `limit`, and writes slots in place of their
// numbers. Returns how many entries there are then.
template <class S>
__device__ __forceinline__ int keep_certain(const SelectMemory<S>& memory, int n, int k, int begin, Key<S> limit) {
  const int lane = threadIdx.x % kWarp;
  const unsigned below = (1u << lane) - 1;
  int kept = begin;
  for (int base = begin; base < k; base += kWarp) {
    const int e = base + lane;
    Key<S> key = 0;
    uint32_t slot = 0;
    if (e < k) {
      const int pair = memory.pairs[memory.taken_places[e]];
      key = memory.taken_keys[e];
      slot = memory.half_places[pair / kMaxK] * n + memory.half_places[k + pair % kMaxK];
    }
    const bool keep = e < k && key > limit;
    const unsigned keepers = __ballot_sync(kAll, keep);
    __syncwarp();
    if (keep) {
      const int at = kept + __popc(keepers & below);
      memory.taken_keys[at] = key;
      memory.taken_places[at] = slot;
    }
    kept += __popc(keepers);
  }
  return kept;
}

// Appends slots whose sums have the key `value`, in ascending order, until there are k.
template <class S>
__device__ __forceinline__ void append_equal_sums(const SelectMemory<S>& memory, const Halves<S>& halves, int k,
                                                  int taken, Key<S> value, const Range<S>& second) {
  const S best = score_of<S>(second.most);
  const auto row_reaches = [&](int i) { return sum_key<S>(halves.first[i], best) >= value; };
  const auto equals = [&](int i, int j) {
    const S sum = halves.first[i] + halves.second[j];
    return sum == sum && key_of<S>(sum) == value;
  };
  append_pairs<Key<S>>(taken, k, halves.n, value, memory.taken_keys, memory.taken_places, row_reaches, equals);
}

// Selects the k best sums that are not NaN after `taken` others.
template <class S>
__device__ __forceinline__ void select_sums(const SelectMemory<S>& memory, const Halves<S>& halves, int k, int taken,
                                            const Range<S>& second, bool opposite) {
  const int rest = k - taken;
  const auto candidates = gather_candidates<S>(memory, halves.n, k, rest);
  const auto bounds = bounds_of<Key<S>>(memory.keys, candidates.count);
  const auto threshold = bisect<Key<S>>(memory.keys, candidates.count, rest, bounds);
  const auto best =
      take<Key<S>>(memory.keys, candidates.count, threshold, memory.taken_keys + taken, memory.taken_places + taken);
  __syncwarp();
  const bool unsure = best.next >= best.last || candidates.beyond >= best.last || (opposite && best.last == kNegInf<S>);
  const int kept = keep_certain<S>(memory, halves.n, k, taken, unsure ? best.last : Key<S>{0});
  if (unsure) append_equal_sums<S>(memory, halves, k, kept, best.last, second);
  __syncwarp();
}

// The scores, or their softmax, and the slots of a row, in descending order.
template <class S, bool kSoftmax>
__device__ __forceinline__ void write_results(const SelectMemory<S>& memory, const Halves<S>& halves,
                                              const Select<S>& task, int64_t row) {
  const int lane = threadIdx.x % kWarp;
  const int k = task.k;
  // Scores are computed from the halves again, since keys do not distinguish -0 from +0.
  Key<S> best_key = 0;
  S score[kMaxK / kWarp], sum = 0;
#pragma unroll
  for (int u = 0; u < kMaxK / kWarp; ++u) {
    const int e = u * kWarp + lane;
    if (e < k) {
      const uint32_t slot = memory.taken_places[e];
      const Key<S> key = memory.taken_keys[e];
      score[u] = halves.first[slot / halves.n] + halves.second[slot % halves.n];
      best_key = key > best_key ? key : best_key;
    }
  }
  if (kSoftmax) {
    const S best = score_of<S>(warp_max(best_key));
#pragma unroll
    for (int u = 0; u < kMaxK / kWarp; ++u) {
      if (u * kWarp + lane < k) {
        score[u] = std::exp(score[u] - best);
        sum += score[u];
      }
    }
    sum = warp_sum(sum);
  }
#pragma unroll
  for (int u = 0; u < kMaxK / kWarp; ++u) {
    const int e = u * kWarp + lane;
    if (e < k) {
      const uint32_t slot = memory.taken_places[e];
      const int64_t at =
          row * k + rank_of<Key<S>>(memory.taken_keys[e], slot, memory.taken_keys, memory.taken_places, k);
      task.scores[at] = kSoftmax ? score[u] / sum : score[u];
      task.slots[at] = slot;
    }
  }
}

template <class S, bool kSoftmax>
__global__ void __launch_bounds__(kSelectWarps* kWarp, 8)
    select_kernel(const Select<S> task, const int pairs_count, const int warp_bytes) {
  const int warp = threadIdx.x / kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp;
  if (row >= task.rows) return;  // the whole warp
  const int k = task.k;
  const SelectMemory<S> memory(Arena(warp * warp_bytes), task.n, k, pairs_count);
  const Halves<S> halves(task, row);
  const Range<S> first = select_half<S>(memory, halves.first, 0, task.n, k);
  const Range<S> second = select_half<S>(memory, halves.second, 1, task.n, k);
  const bool opposite = has_opposite_infinities<S>(first, second);
  int taken = 0;
  if (opposite || first.most == kNan<S> || second.most == kNan<S>) {
    taken = append_nan_sums<S>(memory, halves, k, second);
  }
  if (taken < k) select_sums<S>(memory, halves, k, taken, second, opposite);
  write_results<S, kSoftmax>(memory, halves, task, row);
}

// The gradient of the half scores: one warp per token and head. One lane computes each sub-key's sum, in the order of
// the selected slots, so it is the same in every run.
template <class S>
__global__ void __launch_bounds__(kSelectWarps* kWarp, 8)
    select_backward_kernel(const SelectBackward<S> task, const int warp_bytes) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp;
  if (row >= task.rows) return;  // the whole warp
  const int n = task.n, k = task.k;
  const Shared<S> sums = Arena(warp * warp_bytes).template take<S>(n);  // sub-key m is lane m % 32's alone
  for (int half = 0; half < 2; ++half) {
    for (int m = lane; m < n; m += kWarp) sums[m] = S{0};
    for (int base = 0; base < k; base += kWarp) {
      const int count = k - base < kWarp ? k - base : kWarp;
      const S grad = lane < count ? static_cast<S>(task.grad[row * k + base + lane]) : S{0};
      const int64_t slot = lane < count ? static_cast<int64_t>(task.slots[row * k + base + lane]) : 0;
      DEVICE_CHECK(slot >= 0 && slot < static_cast<int64_t>(n) * n);
      const int place = static_cast<int>(half == 0 ? slot / n : slot % n);
      for (int e = 0; e < count; ++e) {
        const S g = __shfl_sync(kAll, grad, e);
        const int m = __shfl_sync(kAll, place, e);
        if (m % kWarp == lane) sums[m] += g;
      }
    }
    for (int m = lane; m < n; m += kWarp) task.half_grad[(row * 2 + half) * n + m] = static_cast<S>(sums[m]);
  }
}

}  // namespace memory_layers::cuda
