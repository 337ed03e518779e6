// The K best of the N·N sums of two rows of half scores, and the softmax of their scores: one warp a token and head.
//
// Order (memory_layers/reference.py): NaN, +inf, ..., -inf; of equal sums the lowest slot i·N + j first. Sums are one
// floating-point addition each.
//
// With both halves sorted, the sum at ranks (p, q) is no larger than any at (p' <= p, q' <= q), for rounding is
// monotone. So the K best *values* are among the pairs with (p + 1)(q + 1) <= K, and only where a pair just beyond
// those equals the K-th best value can another slot of that value belong to the result. Then the rows i that reach the
// value are searched in the order of the slots; each but K of them adds to the result, so there are at most 2K.
#pragma once

#include <algorithm>

#include "device.h"

namespace memory_layers::cuda {

constexpr int kSelectWarps = 4;  // a block, at most

// Integers in the order of the scores, all above 0, which stands for "none".
template <class S>
struct Order;

template <>
struct Order<float> {
  using Key = uint32_t;
  static constexpr Key kSign = 0x80000000u;
  static constexpr Key kInf = 0xff800000u;
};

template <>
struct Order<double> {
  using Key = uint64_t;
  static constexpr Key kSign = 0x8000000000000000u;
  static constexpr Key kInf = 0xfff0000000000000u;
};

template <class S>
using Key = typename Order<S>::Key;
template <class S>
constexpr Key<S> kInf = Order<S>::kInf;
template <class S>
constexpr Key<S> kNan = Order<S>::kInf + 1;
template <class S>
constexpr Key<S> kNegInf = ~Order<S>::kInf;  // the bits of -inf are the key of +inf

template <class S>
__device__ __forceinline__ Key<S> key_of(S score) {
  const auto bits = bit_cast<Key<S>>(score + S{0});  // -0 + 0 = +0
  if (score != score) return kNan<S>;
  return bits & Order<S>::kSign ? ~bits : bits | Order<S>::kSign;
}

template <class S>
__device__ __forceinline__ S score_of(Key<S> key) {
  return bit_cast<S>(key & Order<S>::kSign ? key ^ Order<S>::kSign : ~key);
}

// The key of the sum of two scores that are not NaN. +inf + -inf, which ranks first, is dealt with apart: here it ranks
// last, so that keys are monotone in both scores.
template <class S>
__device__ __forceinline__ Key<S> sum_key(S a, S b) {
  const S sum = a + b;
  return sum != sum ? kNegInf<S> : key_of<S>(sum);
}

// How many pairs have (p + 1)(q + 1) <= k.
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
  Shared<uint32_t> taken_places;  // k

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

template <class K>
struct Found {
  K last;         // the k-th largest key
  K next;         // the largest that was not taken, 0 if none
  K most, least;  // of all
};

// Takes the k largest of keys[0 .. count), of equal ones the first, in the order of their places.
template <class K>
__device__ Found<K> take_largest(Shared<K> keys, int count, int k, Shared<K> taken_keys,
                                 Shared<uint32_t> taken_places) {
  const int lane = threadIdx.x % kWarp;
  const unsigned below = (1u << lane) - 1;
  K most = 0, least = ~K{0};
  for (int i = lane; i < count; i += kWarp) {
    const K key = keys[i];
    most = key > most ? key : most;
    least = key < least ? key : least;
  }
  // Bisect for the threshold: at least k keys are >= low, fewer are >= high. Every lane's largest is >= the smallest of
  // those, so with k <= 32 that is where to begin.
  const K lanes_least = warp_min(most);
  most = warp_max(most);
  least = warp_min(least);
  K low = k <= kWarp && count >= kWarp ? lanes_least : least, high = most + 1;
  int at_low = count, at_high = 0;  // at_low may be too large at first, never when it is k
  while (at_low != k && high - low > 1) {
    const K middle = low + (high - low) / 2;
    unsigned reach = 0;
#pragma unroll 4
    for (int i = lane; i < count; i += kWarp) reach += keys[i] >= middle;
    reach = __reduce_add_sync(kAll, reach);
    if (static_cast<int>(reach) >= k) {
      low = middle;
      at_low = reach;
    } else {
      high = middle;
      at_high = reach;
    }
  }
  // Either exactly k keys are >= low, or low is the k-th largest and at_high of them are larger.
  const int wanted = at_low == k ? k : k - at_high;  // of those equal to low
  int taken = 0, equals = 0;
  K last = ~K{0}, next = 0;
  for (int base = 0; base < count; base += kWarp) {
    const int i = base + lane;
    const K key = i < count ? static_cast<K>(keys[i]) : K{0};
    const unsigned equal = __ballot_sync(kAll, key == low);
    const bool take = key > low || (key == low && equals + __popc(equal & below) < wanted);
    const unsigned takers = __ballot_sync(kAll, take);
    if (take) {
      const int at = taken + __popc(takers & below);
      taken_keys[at] = key;
      taken_places[at] = i;
      last = key < last ? key : last;
    } else {
      next = key > next ? key : next;
    }
    equals += __popc(equal);
    taken += __popc(takers);
  }
  return {warp_min(last), warp_max(next), most, least};
}

// How many of keys[0 .. k) come before this one: larger, or as large at a lower place.
template <class K>
__device__ __forceinline__ int rank_of(K key, uint32_t place, Shared<K> keys, Shared<uint32_t> places, int k) {
  int rank = 0;
#pragma unroll 4
  for (int e = 0; e < k; ++e) {
    const K other = keys[e];
    rank += other > key || (other == key && places[e] < place);
  }
  return rank;
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

template <class S, bool kSoftmax>
__global__ void __launch_bounds__(kSelectWarps* kWarp, 8)
    select_kernel(const Select<S> task, const int pairs_count, const int warp_bytes) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const unsigned below = (1u << lane) - 1;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp;
  if (row >= task.rows) return;  // the whole warp
  const int n = task.n, k = task.k;
  const SelectMemory<S> memory(Arena(warp * warp_bytes), n, k, pairs_count);
  const Global<const S> first =
      task.half_scores + (row / task.heads * task.token_stride + row % task.heads * task.head_stride);
  const Global<const S> second = first + task.half_stride;

  // The k best of each half, sorted, and the value of the next.
  Key<S> most[2], least[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Global<const S> scores = half == 0 ? first : second;
#pragma unroll 4
    for (int i = lane; i < n; i += kWarp) memory.keys[i] = key_of<S>(scores[i]);
    __syncwarp();
    const auto found = take_largest<Key<S>>(memory.keys, n, k, memory.taken_keys, memory.taken_places);
    most[half] = found.most;
    least[half] = found.least;
    __syncwarp();
    for (int e = lane; e < k; e += kWarp) {
      const Key<S> key = memory.taken_keys[e];
      const uint32_t place = memory.taken_places[e];
      const int rank = rank_of<Key<S>>(key, place, memory.taken_keys, memory.taken_places, k);
      memory.half_keys[half * (k + 1) + rank] = key;
      memory.half_places[half * k + rank] = static_cast<uint16_t>(place);
    }
    if (lane == 0) memory.half_keys[half * (k + 1) + k] = found.next;
    __syncwarp();
  }

  // Sums that are NaN come first. With a NaN in a half there are at least n >= k of them.
  int taken = 0;
  const bool opposite =
      (most[0] == kInf<S> && least[1] == kNegInf<S>) || (most[1] == kInf<S> && least[0] == kNegInf<S>);
  if (opposite || most[0] == kNan<S> || most[1] == kNan<S>) {
    const auto row_has_nan = [&](int i) {
      const Key<S> key = key_of<S>(first[i]);
      return key == kNan<S> || most[1] == kNan<S> || (key == kInf<S> && least[1] == kNegInf<S>) ||
             (key == kNegInf<S> && most[1] == kInf<S>);
    };
    const auto is_nan = [&](int i, int j) {
      const S sum = first[i] + second[j];
      return sum != sum;
    };
    taken = append_pairs<Key<S>>(0, k, n, kNan<S>, memory.taken_keys, memory.taken_places, row_has_nan, is_nan);
    __syncwarp();
  }

  if (taken < k) {
    // The sums with (p + 1)(q + 1) <= rest, and the largest of those just beyond.
    const int rest = k - taken, length = k < n ? k + 1 : k;
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
    beyond = warp_max(beyond);
    __syncwarp();
    const auto found =
        take_largest<Key<S>>(memory.keys, count, rest, memory.taken_keys + taken, memory.taken_places + taken);
    __syncwarp();

    // Keep what is surely right, and write slots in place of the candidates' numbers.
    const bool unsure = found.next >= found.last || beyond >= found.last || (opposite && found.last == kNegInf<S>);
    const int begin = taken;
    for (int base = begin; base < k; base += kWarp) {
      const int e = base + lane;
      Key<S> key = 0;
      uint32_t slot = 0;
      if (e < k) {
        const int pair = memory.pairs[memory.taken_places[e]];
        key = memory.taken_keys[e];
        slot = memory.half_places[pair / kMaxK] * n + memory.half_places[k + pair % kMaxK];
      }
      const bool keep = e < k && (!unsure || key > found.last);
      const unsigned keepers = __ballot_sync(kAll, keep);
      __syncwarp();
      if (keep) {
        const int at = taken + __popc(keepers & below);
        memory.taken_keys[at] = key;
        memory.taken_places[at] = slot;
      }
      taken += __popc(keepers);
    }
    if (unsure) {
      const S best = score_of<S>(most[1]);
      const auto row_reaches = [&](int i) { return sum_key<S>(first[i], best) >= found.last; };
      const auto equals = [&](int i, int j) {
        const S sum = first[i] + second[j];
        return sum == sum && key_of<S>(sum) == found.last;
      };
      append_pairs<Key<S>>(taken, k, n, found.last, memory.taken_keys, memory.taken_places, row_reaches, equals);
    }
    __syncwarp();
  }

  // Scores are added anew: keys do not tell -0 from +0.
  Key<S> best_key = 0;
  S score[kMaxK / kWarp], sum = 0;
#pragma unroll
  for (int u = 0; u < kMaxK / kWarp; ++u) {
    const int e = u * kWarp + lane;
    if (e < k) {
      const uint32_t slot = memory.taken_places[e];
      const Key<S> key = memory.taken_keys[e];
      score[u] = first[slot / n] + second[slot % n];
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

// The gradient of the half scores: one warp a token and head. Every sub-key's sum is one lane's, in the order of the
// selected slots, so it is the same in every run.
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
