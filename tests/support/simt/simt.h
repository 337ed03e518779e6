// A CUDA device on the CPU, for testing kernels: blocks run one after the other, and the threads of a block are fibers
// that switch at shuffles, ballots and barriers, in an order drawn from simt::seed.
//
// Memory is addressed through Global<T> and Shared<T>, which check every access. A launch throws simt::Fault at
// - an access out of an array's bounds, or a vector access that is not aligned,
// - a read of shared memory that was not written before,
// - a race: two accesses to one element, at least one a write, by threads that no barrier orders (__syncwarp orders the
//   threads of a warp, __syncthreads those of a block, nothing orders blocks; shuffles and ballots order nothing),
// - a warp or block operation that not all threads of the warp or block reach, or that they reach with different ones,
// - a failed DEVICE_CHECK.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define DEVICE_CHECK(condition) simt::check(condition, #condition)
#define threadIdx (simt::self().index)
#define blockIdx (simt::device().block)
#define blockDim (simt::device().block_size)
#define gridDim (simt::device().grid_size)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;

namespace simt {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(bool condition, const char* text) {
  if (!condition) throw Fault(std::string("device check failed: ") + text);
}

inline uint64_t seed = 0;

// ---- threads ----------------------------------------------------------------------------------------------

constexpr int kLanes = 32;

enum class State { ready, at_warp, at_block, done };

struct Thread {
  dim3 index;
  int number, warp;                  // in the block
  unsigned warp_epoch, block_epoch;  // barriers passed
  State state;
  std::string waits_at;
  uint64_t payload;
  bool started;
  ucontext_t entry;
  jmp_buf place;
  std::unique_ptr<char[]> stack;
};

class Device {
 public:
  dim3 block, block_size, grid_size;
  uint64_t block_number = 0;  // counted over all launches, to distinguish accesses of different blocks
  uint64_t launch_first = 0;  // block_number of this launch's first
  std::vector<char> shared;
  Thread* running = nullptr;

  void run(dim3 grid, dim3 threads, int shared_bytes, const std::function<void()>& kernel) {
    const int count = threads.x * threads.y * threads.z;
    if (count == 0 || count % kLanes != 0 || count > 1024)
      throw Fault("blocks must be whole warps, up to 1024 threads");
    if (shared_bytes > 48 << 10) throw Fault("more than 48 KiB of shared memory");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535) throw Fault("grid out of range");
    block_size = threads;
    grid_size = grid;
    kernel_ = &kernel;
    launch_first = block_number + 1;
    order_.seed(seed);
    while (static_cast<int>(threads_.size()) < count) {
      threads_.emplace_back(std::make_unique<Thread>());
      threads_.back()->stack.reset(new char[kStack]);
    }
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
          block = dim3(x, y, z);
          ++block_number;
          shared.assign(shared_bytes, static_cast<char>(0xa5));
          run_block(count);
        }
  }

  // Waits until all lanes of the warp are here, and gives what each brought.
  const uint64_t* meet_warp(const char* operation, unsigned mask, uint64_t payload) {
    if (mask != 0xffffffffu) throw Fault(std::string(operation) + ": the mask must name all lanes");
    Thread& me = *running;
    me.payload = payload;
    me.waits_at = operation;
    me.state = State::at_warp;
    const int first = me.warp * kLanes;
    if (all(first, first + kLanes, State::at_warp)) {
      for (int i = first; i < first + kLanes; ++i) {
        if (threads_[i]->waits_at != operation)
          throw Fault("lanes of a warp meet at " + threads_[i]->waits_at + " and " + operation);
        payloads_[i] = threads_[i]->payload;
        threads_[i]->state = State::ready;
      }
    } else {
      leave();
    }
    return &payloads_[first];
  }

  void meet_block() {
    Thread& me = *running;
    me.waits_at = "__syncthreads";
    me.state = State::at_block;
    if (all(0, count_, State::at_block)) {
      for (int i = 0; i < count_; ++i) threads_[i]->state = State::ready;
    } else {
      leave();
    }
    ++me.block_epoch;
  }

 private:
  static constexpr size_t kStack = 128 << 10;

  bool all(int begin, int end, State state) const {
    for (int i = begin; i < end; ++i)
      if (threads_[i]->state != state) return false;
    return true;
  }

  // From a fiber to the scheduler, until it is this thread's turn again. (swapcontext would make two system calls.)
  [[gnu::noinline]] void leave() {
    if (_setjmp(running->place) == 0) _longjmp(scheduler_, 1);
  }

  [[gnu::noinline]] void resume(Thread& thread) {
    running = &thread;
    if (_setjmp(scheduler_) != 0) return;
    if (thread.started) _longjmp(thread.place, 1);
    thread.started = true;
    setcontext(&thread.entry);
  }

  static void begin();

  void run_block(int count) {
    count_ = count;
    payloads_.assign(count, 0);
    fault_.clear();
    turns_.resize(count);
    for (int i = 0; i < count; ++i) {
      Thread& thread = *threads_[i];
      thread.index = dim3(i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y);
      thread.number = i;
      thread.warp = i / kLanes;
      thread.warp_epoch = thread.block_epoch = 0;
      thread.state = State::ready;
      thread.started = false;
      getcontext(&thread.entry);
      thread.entry.uc_stack.ss_sp = thread.stack.get();
      thread.entry.uc_stack.ss_size = kStack;
      thread.entry.uc_link = nullptr;
      makecontext(&thread.entry, begin, 0);
      turns_[i] = i;
    }
    for (bool moved = true; moved;) {
      moved = false;
      std::shuffle(turns_.begin(), turns_.end(), order_);
      for (const int i : turns_) {
        if (threads_[i]->state != State::ready) continue;
        resume(*threads_[i]);
        moved = true;
        if (!fault_.empty())
          throw Fault(fault_ + " (thread " + std::to_string(i) + ", block " + std::to_string(block.x) + ")");
      }
    }
    for (int i = 0; i < count; ++i) {
      if (threads_[i]->state != State::done)
        throw Fault("not all threads reach " + threads_[i]->waits_at + " (block " + std::to_string(block.x) + ")");
    }
  }

  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<uint64_t> payloads_;
  std::vector<int> turns_;
  std::mt19937_64 order_;
  const std::function<void()>* kernel_ = nullptr;
  int count_ = 0;
  std::string fault_;
  jmp_buf scheduler_;
};

inline Device& device() {
  static Device device;
  return device;
}

inline Thread& self() { return *device().running; }

inline void Device::begin() {
  Device& here = device();
  try {
    (*here.kernel_)();
  } catch (const std::exception& error) {
    here.fault_ = error.what();
  }
  here.running->state = State::done;
  _longjmp(here.scheduler_, 1);
}

// ---- memory -----------------------------------------------------------------------------------------------

struct Access {
  uint64_t block = 0;  // none
  int thread = 0, warp = 0;
  unsigned warp_epoch = 0, block_epoch = 0;
};

// Whether a barrier lies between an earlier access and one that is made now by `now`.
inline bool ordered(const Access& before, const Access& now) {
  if (before.block != now.block) return before.block < device().launch_first;
  if (before.thread == now.thread || before.block_epoch < now.block_epoch) return true;
  return before.warp == now.warp && before.warp_epoch < now.warp_epoch;
}

// What is known of one element: the last write, and the reads since then that no barrier orders.
struct Cell {
  uint64_t block = 0;  // of shared memory: whose it was
  Access write;
  std::vector<Access> reads;

  void record(bool writing, const char* memory) {
    const Thread& me = self();
    const Access now{device().block_number, me.number, me.warp, me.warp_epoch, me.block_epoch};
    if (write.block != 0 && !ordered(write, now)) race(memory, writing ? "write" : "read", "write", write);
    if (writing) {
      for (const Access& read : reads)
        if (!ordered(read, now)) race(memory, "write", "read", read);
      reads.clear();
      write = now;
      return;
    }
    int equal = 0;  // reads by other threads of the warp between the same barriers: two stand for all
    for (size_t i = 0; i < reads.size();) {
      if (ordered(reads[i], now)) {
        reads[i] = reads.back();
        reads.pop_back();
      } else {
        equal += reads[i].block == now.block && reads[i].warp == now.warp;
        ++i;
      }
    }
    if (equal < 2) reads.push_back(now);
  }

 private:
  [[noreturn]] static void race(const char* memory, const char* now, const char* before, const Access& other) {
    throw Fault(std::string("race in ") + memory + " memory: " + now + " after a " + before + " of thread " +
                std::to_string(other.thread) + " with no barrier between");
  }
};

inline void check_bounds(const char* memory, int64_t index, int64_t count, int64_t size) {
  if (index < 0 || index + count > size)
    throw Fault(std::string("access out of bounds in ") + memory + " memory: element " + std::to_string(index) +
                (count > 1 ? " to " + std::to_string(index + count - 1) : "") + " of " + std::to_string(size));
}

// An element that can be read and written.
template <class T>
class Element {
 public:
  Element(T* value, Cell* cell, const char* memory) : value_(value), cell_(cell), memory_(memory) {}
  Element(const Element&) = default;
  operator T() const {
    cell_->record(false, memory_);
    return *value_;
  }
  T operator=(T x) const {
    cell_->record(true, memory_);
    return *value_ = x;
  }
  T operator=(const Element& x) const { return *this = static_cast<T>(x); }
  T operator+=(T x) const { return *this = static_cast<T>(*this) + x; }

 private:
  T* value_;
  Cell* cell_;
  const char* memory_;
};

// ---- half precision ---------------------------------------------------------------------------------------

inline float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
  if (rest < 0x0400) {  // zero, subnormal
    const float x = static_cast<float>(rest) * 0x1p-24f;
    return sign != 0 ? -x : x;
  }
  const uint32_t bits = sign | (rest >= 0x7c00 ? 0x7f800000u | (rest & 0x3ff) << 13 : (rest << 13) + (112u << 23));
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint16_t float_to_half(float x) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint16_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return 0x7fff;
  if (bits >= 0x477ff000) return sign | 0x7c00;
  if (bits < 0x38800000) {  // below 2^-14: a multiple of 2^-24; adding 0.5 leaves it in the lowest bits
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof bits);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof bits);
    return sign | static_cast<uint16_t>(bits - 0x3f000000);
  }
  return sign | static_cast<uint16_t>((bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13);
}

}  // namespace simt

// ---- the names of CUDA and of device.h --------------------------------------------------------------------

template <class T>
T from_payload(uint64_t payload) {
  T x;
  std::memcpy(&x, &payload, sizeof x);
  return x;
}

template <class T>
const uint64_t* meet_warp(const char* operation, unsigned mask, T x) {
  static_assert(sizeof x <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t payload = 0;
  std::memcpy(&payload, &x, sizeof x);
  return simt::device().meet_warp(operation, mask, payload);
}

template <class T>
T __shfl_sync(unsigned mask, T x, int source) {
  return from_payload<T>(meet_warp("__shfl_sync", mask, x)[source % simt::kLanes]);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T x, int lane_mask) {
  const int lane = simt::self().number % simt::kLanes;
  return from_payload<T>(meet_warp("__shfl_xor_sync", mask, x)[lane ^ lane_mask]);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const uint64_t* votes = meet_warp("__ballot_sync", mask, predicate);
  unsigned ballot = 0;
  for (int i = 0; i < simt::kLanes; ++i) ballot |= static_cast<unsigned>(votes[i] != 0) << i;
  return ballot;
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned x) {
  const uint64_t* terms = meet_warp("__reduce_add_sync", mask, x);
  unsigned sum = 0;
  for (int i = 0; i < simt::kLanes; ++i) sum += static_cast<unsigned>(terms[i]);
  return sum;
}

inline void __syncwarp() {
  meet_warp("__syncwarp", 0xffffffffu, 0);
  ++simt::self().warp_epoch;
}

inline void __syncthreads() { simt::device().meet_block(); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }

namespace memory_layers::cuda {

template <class T, int W>
struct Pack;

// A tensor of the device; T may be const.
template <class T>
class Global {
 public:
  using Value = std::remove_const_t<T>;

  Global(T* data, int64_t size, simt::Cell* cells) : data_(data), size_(size), cells_(cells) {}

  Global operator+(int64_t offset) const {
    Global moved = *this;
    moved.offset_ += offset;
    return moved;
  }
  auto operator[](int64_t i) const {
    i += offset_;
    simt::check_bounds("global", i, 1, size_);
    if constexpr (std::is_const_v<T>) {
      cells_[i].record(false, "global");
      return data_[i];
    } else {
      return simt::Element<T>(data_ + i, cells_ + i, "global");
    }
  }
  // W elements at once.
  Value* pack(int64_t i, int width, size_t alignment, bool writing) const {
    i += offset_;
    simt::check_bounds("global", i, width, size_);
    if (reinterpret_cast<uintptr_t>(data_ + i) % alignment != 0) throw simt::Fault("misaligned vector access");
    for (int w = 0; w < width; ++w) cells_[i + w].record(writing, "global");
    return const_cast<Value*>(data_ + i);
  }
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(data_ + offset_); }

 private:
  T* data_;
  int64_t size_, offset_ = 0;
  simt::Cell* cells_;
};

template <class T>
uintptr_t address(const Global<T>& tensor) {
  return tensor.address();
}

template <int W, class T>
auto load(const Global<T>& p, int64_t i) {
  using Packed = Pack<std::remove_const_t<T>, W>;
  Packed pack;
  std::memcpy(&pack, p.pack(i, W, alignof(Packed), false), sizeof pack);
  return pack;
}

template <int W, class T>
void store(const Global<T>& p, int64_t i, const Pack<T, W>& pack) {
  std::memcpy(p.pack(i, W, alignof(Pack<T, W>), true), &pack, sizeof pack);
}

// What is recorded of the shared memory of the block that runs: a cell for every two bytes.
inline simt::Cell* shared_cells(size_t offset) {
  static std::vector<simt::Cell> cells((48 << 10) / 2);
  return &cells[offset / 2];
}

// An array in shared memory.
template <class T>
class Shared {
 public:
  Shared() = default;
  Shared(size_t begin, int size) : begin_(begin), size_(size) {}

  Shared operator+(int offset) const {
    Shared moved = *this;
    moved.offset_ += offset;
    return moved;
  }
  auto operator[](int i) const {
    i += offset_;
    simt::check_bounds("shared", i, 1, size_);
    const size_t at = begin_ + i * sizeof(T);
    simt::Cell* cell = shared_cells(at);
    if (cell->block != simt::device().block_number) {
      cell->block = simt::device().block_number;
      cell->write = {};
      cell->reads.clear();
    }
    return SharedElement(reinterpret_cast<T*>(simt::device().shared.data() + at), cell);
  }

 private:
  class SharedElement : public simt::Element<T> {
   public:
    SharedElement(T* value, simt::Cell* cell) : simt::Element<T>(value, cell, "shared"), cell_(cell) {}
    using simt::Element<T>::operator=;
    operator T() const {
      if (cell_->write.block == 0) throw simt::Fault("read of shared memory that nobody wrote");
      return static_cast<const simt::Element<T>&>(*this);
    }
    T operator+=(T x) const { return *this = static_cast<T>(*this) + x; }

   private:
    simt::Cell* cell_;
  };

  size_t begin_ = 0;
  int size_ = 0, offset_ = 0;
};

class Arena {
 public:
  explicit Arena(int offset) : next_(offset) {}
  template <class T>
  Shared<T> take(int count) {
    const size_t begin = next_;
    next_ = (begin + count * sizeof(T) + 15) / 16 * 16;
    if (begin + count * sizeof(T) > simt::device().shared.size())
      throw simt::Fault("arrays need more shared memory than the launch gives");
    return Shared<T>(begin, count);
  }

 private:
  size_t next_;
};

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class... P>
void launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, int bytes, cudaStream_t,
                   const std::type_identity_t<P>&... arguments) {
  simt::device().run(grid, block, bytes, [&] { kernel(arguments...); });
}

}  // namespace memory_layers::cuda
