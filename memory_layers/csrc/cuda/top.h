// The k largest of some keys in shared memory, by one warp.
#pragma once

#include "device.h"

namespace memory_layers::cuda {

// The bounds of some keys. Every lane's largest is at least `lanes_least`, so `kWarp` keys reach it.
template <class K>
struct Bounds {
  K most, least, lanes_least;
};

template <class K>
__device__ __forceinline__ Bounds<K> bounds_of(Shared<K> keys, int count) {
  K most = 0, least = ~K{0};
  for (int i = threadIdx.x % kWarp; i < count; i += kWarp) {
    const K key = keys[i];
    most = key > most ? key : most;
    least = key < least ? key : least;
  }
  return {warp_max(most), warp_min(least), warp_min(most)};
}

// Which of some keys are the k largest: all above `low`, and of those equal to it the first `equals`.
template <class K>
struct Threshold {
  K low;
  int equals;
};

template <class K>
__device__ __forceinline__ Threshold<K> bisect(Shared<K> keys, int count, int k, const Bounds<K>& bounds) {
  const int lane = threadIdx.x % kWarp;
  // At least k keys are >= low, fewer are >= high.
  K low = k <= kWarp && count >= kWarp ? bounds.lanes_least : bounds.least, high = bounds.most + 1;
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
  return {low, at_low == k ? k : k - at_high};
}

template <class K>
struct Taken {
  K last;  // the k-th largest key
  K next;  // the largest that was not taken, 0 if none
};

// Takes the keys of a threshold, in the order of their places.
template <class K>
__device__ __forceinline__ Taken<K> take(Shared<K> keys, int count, const Threshold<K>& threshold, Shared<K> taken_keys,
                                         Shared<uint32_t> taken_places) {
  const int lane = threadIdx.x % kWarp;
  const unsigned below = (1u << lane) - 1;
  int taken = 0, equals = 0;
  K last = ~K{0}, next = 0;
  for (int base = 0; base < count; base += kWarp) {
    const int i = base + lane;
    const K key = i < count ? static_cast<K>(keys[i]) : K{0};
    const unsigned equal = __ballot_sync(kAll, key == threshold.low);
    const bool wanted =
        key > threshold.low || (key == threshold.low && equals + __popc(equal & below) < threshold.equals);
    const unsigned takers = __ballot_sync(kAll, wanted);
    if (wanted) {
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
  return {warp_min(last), warp_max(next)};
}

// The number of keys[0 .. k) before this one: those that are larger, or as large at a lower place.
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

}  // namespace memory_layers::cuda
