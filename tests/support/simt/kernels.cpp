// The kernels of memory_layers/csrc/cuda and their launches, compiled for the emulated device of simt.h, as a library
// for ctypes. Every function returns null, or what went wrong.
#include "launch.h"

namespace {

using namespace memory_layers::cuda;

struct Tensor {
  void* data;
  int64_t size;
};

// A tensor on the device: its size and what is recorded of its elements, for the time of one launch.
template <class T>
class Resident {
 public:
  explicit Resident(const Tensor& tensor) : tensor_(tensor), cells_(tensor.size) {}
  operator Global<T>() { return Global<T>(static_cast<T*>(tensor_.data), tensor_.size, cells_.data()); }

 private:
  Tensor tensor_;
  std::vector<simt::Cell> cells_;
};

template <class Body>
const char* guarded(int64_t seed, const Body& body) {
  static std::string message;
  simt::seed = seed;
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

// Number formats as the tests number them.
template <class Body>
void with_scores(int format, const Body& body) {
  format == 1 ? body(double{}) : body(float{});
}

template <class Body>
void with_values(int format, const Body& body) {
  switch (format) {
    case 0:
      return body(float{});
    case 1:
      return body(double{});
    case 2:
      return body(float16{});
    default:
      return body(bfloat16{});
  }
}

struct Pairs {
  Tensor slots, positions, weights, grad;
  int64_t n_slots;
  int bag, dim;
};

template <class A>
struct ResidentPairs {
  Resident<const int64_t> slots;
  Resident<const int32_t> positions;
  Resident<const A> weights, grad;
  SortedPairs<A> task;

  explicit ResidentPairs(const Pairs& pairs)
      : slots(pairs.slots),
        positions(pairs.positions),
        weights(pairs.weights),
        grad(pairs.grad),
        task{slots, positions, weights, grad, pairs.slots.size, pairs.n_slots, pairs.bag, pairs.dim} {}
};

}  // namespace

extern "C" {

const char* simt_select(int64_t seed, int format, Tensor half_scores, int64_t token_stride, int64_t head_stride,
                        int64_t half_stride, Tensor scores, Tensor slots, int64_t rows, int heads, int n, int k,
                        bool softmax) {
  return guarded(seed, [&] {
    with_scores(format, [&](auto type) {
      using S = decltype(type);
      Resident<const S> in(half_scores);
      Resident<S> out(scores);
      Resident<int64_t> places(slots);
      launch(Select<S>{in, token_stride, head_stride, half_stride, out, places, rows, heads, n, k}, softmax, nullptr);
    });
  });
}

#ifndef SIMT_SELECT_ONLY

const char* simt_select_backward(int64_t seed, int format, Tensor grad, Tensor slots, Tensor half_grad, int64_t rows,
                                 int n, int k) {
  return guarded(seed, [&] {
    with_scores(format, [&](auto type) {
      using S = decltype(type);
      Resident<const S> in(grad);
      Resident<const int64_t> places(slots);
      Resident<S> out(half_grad);
      launch(SelectBackward<S>{in, places, out, rows, n, k}, nullptr);
    });
  });
}

const char* simt_bag(int64_t seed, int format, Tensor values, Tensor slots, Tensor weights, Tensor output,
                     int64_t tokens, int64_t n_slots, int bag, int dim) {
  return guarded(seed, [&] {
    with_values(format, [&](auto type) {
      using S = decltype(type);
      Resident<const S> table(values);
      Resident<const int64_t> places(slots);
      Resident<const Wide<S>> factors(weights);
      Resident<S> out(output);
      launch(Bag<S>{table, places, factors, out, tokens, n_slots, bag, dim}, nullptr);
    });
  });
}

const char* simt_bag_weights_backward(int64_t seed, int format, Tensor grad, Tensor values, Tensor slots,
                                      Tensor weights_grad, int64_t tokens, int64_t n_slots, int bag, int dim) {
  return guarded(seed, [&] {
    with_values(format, [&](auto type) {
      using S = decltype(type);
      Resident<const Wide<S>> in(grad);
      Resident<const S> table(values);
      Resident<const int64_t> places(slots);
      Resident<Wide<S>> out(weights_grad);
      launch(BagWeightsBackward<S>{in, table, places, out, tokens, n_slots, bag, dim}, nullptr);
    });
  });
}

const char* simt_squared_norm(int64_t seed, int format, Pairs pairs, Tensor norms) {
  return guarded(seed, [&] {
    with_scores(format, [&](auto type) {
      using A = decltype(type);
      ResidentPairs<A> in(pairs);
      Resident<double> out(norms);
      launch(in.task, SquaredNorm<A>{out}, nullptr);
    });
  });
}

const char* simt_rows(int64_t seed, int format, Pairs pairs, Tensor ranks, Tensor rows) {
  return guarded(seed, [&] {
    with_values(format, [&](auto type) {
      using S = decltype(type);
      ResidentPairs<Wide<S>> in(pairs);
      Resident<const int64_t> numbers(ranks);
      Resident<S> out(rows);
      launch(in.task, Rows<S>{numbers, out}, nullptr);
    });
  });
}

const char* simt_adam(int64_t seed, int format, Pairs pairs, Tensor values, Tensor exp_avg, Tensor exp_avg_sq,
                      Tensor master, memory_layers::AdamStep step) {
  return guarded(seed, [&] {
    with_values(format, [&](auto type) {
      using S = decltype(type);
      using A = Wide<S>;
      ResidentPairs<A> in(pairs);
      Resident<S> table(values);
      Resident<A> m(exp_avg), v(exp_avg_sq), copy(master);
      launch(in.task, Adam<S>{table, m, v, copy, master.data != nullptr, memory_layers::numbers_of<A>(step)}, nullptr);
    });
  });
}

#endif

}  // extern "C"
