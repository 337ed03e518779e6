// The CUDA implementations of the operators that library.py defines: checks, conversions and scratch memory around the
// launches of kernels.h. Matrix products go to cuBLAS. Definitions: memory_layers/reference/.
//
// Axes: T tokens, H heads, N sub-keys per half, K selected slots, D key dimension, V columns of the table, bag = H·K.
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "kernels.h"
#include "tensors.h"

namespace memory_layers::cuda {
namespace {

using at::Tensor;
using native::data;
using native::mutable_data;

// ---- checks and number formats ----------------------------------------------------------------------------

template <class... Tensors>
void check_device(const char* op, const Tensor& first, const Tensors&... others) {
  const auto check = [&](const Tensor& x) {
    TORCH_CHECK(x.device() == first.device(), op, ": all tensors must be on one device, given ", first.device(),
                " and ", x.device());
  };
  (check(others), ...);
}

void check_table(const char* op, const Tensor& values) {
  TORCH_CHECK(values.dim() == 2, op, ": values must be (n_slots, dim), given ", values.sizes());
  TORCH_CHECK(values.size(1) <= std::numeric_limits<int>::max(), op, ": dim must be less than 2^31, given ",
              values.size(1));
}

void check_slots(const char* op, const Tensor& slots, const Tensor& grad) {
  TORCH_CHECK(slots.dim() == 2 && slots.scalar_type() == at::kLong, op, ": slots must be int64 (tokens, bag), given ",
              slots.scalar_type(), " ", slots.sizes());
  TORCH_CHECK(grad.dim() == 2 && grad.size(0) == slots.size(0), op, ": grad must be (tokens, dim) of ", slots.size(0),
              " tokens, given ", grad.sizes());
}

void check_weights(const char* op, const Tensor& slots, const Tensor& weights) {
  TORCH_CHECK(slots.dim() == 2 && slots.scalar_type() == at::kLong && slots.sizes() == weights.sizes(), op,
              ": slots and weights must have one shape (tokens, bag), slots int64, given ", slots.scalar_type(), " ",
              slots.sizes(), " and ", weights.sizes());
  TORCH_CHECK(slots.numel() <= std::numeric_limits<int>::max(), op, ": tokens times bag must be less than 2^31, given ",
              slots.sizes());
}

void check_k(const char* op, int64_t k, int64_t n) {
  TORCH_CHECK(1 <= k && k <= n, op, ": k must lie between 1 and the number of sub-keys n = ", n, ", given ", k);
  TORCH_CHECK(k <= kMaxK && n <= kMaxN, op, ": the CUDA kernels take k up to ", kMaxK, " and n up to ", kMaxN,
              ", given ", k, " and ", n, "; the backend 'torch' takes any");
}

template <class... Tensors>
at::ScalarType accumulation(const Tensors&... tensors) {
  return ((tensors.scalar_type() == at::kDouble) || ...) ? at::kDouble : at::kFloat;
}

// Calls body with a value of the type that scores (or sums) are in.
template <class Body>
void with_scores(at::ScalarType dtype, const Body& body) {
  dtype == at::kDouble ? body(double{}) : body(float{});
}

// Calls body with a value of the type that a table is stored in.
template <class Body>
void with_values(const char* op, at::ScalarType dtype, const Body& body) {
  switch (dtype) {
    case at::kFloat:
      return body(float{});
    case at::kDouble:
      return body(double{});
    case at::kHalf:
      return body(float16{});
    case at::kBFloat16:
      return body(bfloat16{});
    default:
      TORCH_CHECK(false, op, ": dtype must be float32, float64, float16 or bfloat16, given ", dtype);
  }
}

Tensor as(const Tensor& x, at::ScalarType dtype) { return x.to(dtype).contiguous(); }

// Every launch: the current stream of the tensors' device, which a guard has made the current one, and its errors.
template <class... Arguments>
void checked_launch(const Arguments&... arguments) {
  launch(arguments..., c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// ---- selection --------------------------------------------------------------------------------------------

// Scores, or their softmax, and slots, both (T, H, K).
std::tuple<Tensor, Tensor> select(const char* op, const Tensor& half_scores, int64_t k, bool softmax) {
  TORCH_CHECK(half_scores.dim() == 4 && half_scores.size(2) == 2, op,
              ": half_scores must be (tokens, heads, 2, n), given ", half_scores.sizes());
  check_k(op, k, half_scores.size(3));
  const c10::cuda::CUDAGuard guard(half_scores.device());
  Tensor halves = half_scores.to(accumulation(half_scores));
  if (halves.stride(3) != 1) halves = halves.contiguous();
  const int64_t tokens = halves.size(0), heads = halves.size(1), n = halves.size(3);
  const Tensor scores = at::empty({tokens, heads, k}, halves.options());
  const Tensor slots = at::empty({tokens, heads, k}, halves.options().dtype(at::kLong));
  with_scores(halves.scalar_type(), [&](auto type) {
    using S = decltype(type);
    checked_launch(Select<S>{data<S>(halves), halves.stride(0), halves.stride(1), halves.stride(2),
                             mutable_data<S>(scores), mutable_data<int64_t>(slots), tokens * heads,
                             static_cast<int>(heads), static_cast<int>(n), static_cast<int>(k)},
                   softmax);
  });
  return {scores, slots};
}

std::tuple<Tensor, Tensor> product_key_select(const Tensor& half_scores, int64_t k) {
  return select("product_key_select", half_scores, k, false);
}

Tensor product_key_select_backward(const Tensor& grad, const Tensor& slots, int64_t n) {
  const char* op = "product_key_select_backward";
  TORCH_CHECK(grad.dim() == 3 && grad.sizes() == slots.sizes() && slots.scalar_type() == at::kLong, op,
              ": grad and slots must have one shape (tokens, heads, k), slots int64, given ", grad.sizes(), " and ",
              slots.scalar_type(), " ", slots.sizes());
  check_k(op, grad.size(2), n);
  check_device(op, grad, slots);
  const c10::cuda::CUDAGuard guard(grad.device());
  const Tensor scores = as(grad, accumulation(grad)), places = slots.contiguous();
  const Tensor half_grad = at::empty({grad.size(0), grad.size(1), 2, n}, scores.options());
  with_scores(scores.scalar_type(), [&](auto type) {
    using S = decltype(type);
    checked_launch(SelectBackward<S>{data<S>(scores), data<int64_t>(places), mutable_data<S>(half_grad),
                                     grad.size(0) * grad.size(1), static_cast<int>(n), static_cast<int>(grad.size(2))});
  });
  return half_grad.to(grad.scalar_type());
}

void check_keys(const char* op, const Tensor& queries, const Tensor& sub_keys) {
  TORCH_CHECK(
      queries.dim() == 3 && sub_keys.dim() == 4 && queries.size(2) % 2 == 0 && sub_keys.size(0) == queries.size(1) &&
          sub_keys.size(1) == 2 && 2 * sub_keys.size(3) == queries.size(2),
      op, ": queries must be (tokens, heads, key_dim) with key_dim even, sub_keys (heads, 2, n, key_dim/2), given ",
      queries.sizes(), " and ", sub_keys.sizes());
  check_device(op, queries, sub_keys);
}

// (T, H, D) → (2H, T, D/2)
Tensor query_halves(const Tensor& queries, at::ScalarType dtype) {
  const int64_t tokens = queries.size(0), heads = queries.size(1), half = queries.size(2) / 2;
  return queries.to(dtype).reshape({tokens, 2 * heads, half}).transpose(0, 1);
}

// (T, H, 2, N): a view of the (2H, T, N) that one batched product gives.
Tensor half_scores(const Tensor& queries, const Tensor& sub_keys) {
  const c10::cuda::CUDAGuard guard(queries.device());
  const at::ScalarType dtype = accumulation(queries, sub_keys);
  const Tensor keys = sub_keys.to(dtype).flatten(0, 1).transpose(1, 2);  // (2H, D/2, N)
  return at::matmul(query_halves(queries, dtype), keys).unflatten(0, {queries.size(1), 2}).permute({2, 0, 1, 3});
}

std::tuple<Tensor, Tensor> product_key_topk(const Tensor& queries, const Tensor& sub_keys, int64_t k) {
  const char* op = "product_key_topk";
  check_keys(op, queries, sub_keys);
  check_k(op, k, sub_keys.size(2));
  return select(op, half_scores(queries, sub_keys), k, false);
}

std::tuple<Tensor, Tensor> product_key_topk_backward(const Tensor& grad, const Tensor& slots, const Tensor& queries,
                                                     const Tensor& sub_keys) {
  const char* op = "product_key_topk_backward";
  check_keys(op, queries, sub_keys);
  check_device(op, queries, grad, slots);
  const c10::cuda::CUDAGuard guard(queries.device());
  const at::ScalarType dtype = accumulation(grad, queries, sub_keys);
  const Tensor half_grad = product_key_select_backward(grad.to(dtype), slots, sub_keys.size(2));
  const Tensor rows = half_grad.flatten(1, 2).transpose(0, 1);                                     // (2H, T, N)
  const Tensor grad_queries = at::matmul(rows, sub_keys.to(dtype).flatten(0, 1)).transpose(0, 1);  // (T, 2H, D/2)
  const Tensor grad_keys = at::matmul(rows.transpose(1, 2), query_halves(queries, dtype));         // (2H, N, D/2)
  return {grad_queries.reshape(queries.sizes()).to(queries.scalar_type()),
          grad_keys.reshape(sub_keys.sizes()).to(sub_keys.scalar_type())};
}

// ---- weighted sums of rows --------------------------------------------------------------------------------

Tensor weighted_bag(const Tensor& values, const Tensor& slots, const Tensor& weights) {
  const char* op = "weighted_bag";
  check_table(op, values);
  check_weights(op, slots, weights);
  check_device(op, values, slots, weights);
  const c10::cuda::CUDAGuard guard(values.device());
  const Tensor table = values.contiguous(), places = slots.contiguous(), factors = as(weights, accumulation(values));
  const Tensor output = at::empty({slots.size(0), values.size(1)}, table.options());
  with_values(op, values.scalar_type(), [&](auto type) {
    using S = decltype(type);
    checked_launch(Bag<S>{data<S>(table), data<int64_t>(places), data<Wide<S>>(factors), mutable_data<S>(output),
                          slots.size(0), values.size(0), static_cast<int>(slots.size(1)),
                          static_cast<int>(values.size(1))});
  });
  return output;
}

Tensor weighted_bag_weights_backward(const Tensor& grad, const Tensor& values, const Tensor& slots) {
  const char* op = "weighted_bag_weights_backward";
  check_table(op, values);
  check_slots(op, slots, grad);
  TORCH_CHECK(grad.size(1) == values.size(1), op, ": grad must have values' dim, given ", grad.sizes(), " and ",
              values.sizes());
  check_device(op, values, grad, slots);
  const c10::cuda::CUDAGuard guard(values.device());
  const Tensor table = values.contiguous(), places = slots.contiguous(), in = as(grad, accumulation(values));
  const Tensor result = at::empty(slots.sizes(), in.options());
  with_values(op, values.scalar_type(), [&](auto type) {
    using S = decltype(type);
    checked_launch(BagWeightsBackward<S>{data<Wide<S>>(in), data<S>(table), data<int64_t>(places),
                                         mutable_data<Wide<S>>(result), slots.size(0), values.size(0),
                                         static_cast<int>(slots.size(1)), static_cast<int>(values.size(1))});
  });
  return result.to(accumulation(grad, values));
}

std::tuple<Tensor, Tensor, Tensor> product_key_memory(const Tensor& queries, const Tensor& sub_keys,
                                                      const Tensor& values, int64_t k) {
  const char* op = "product_key_memory";
  check_keys(op, queries, sub_keys);
  const int64_t n = sub_keys.size(2);
  check_k(op, k, n);
  check_table(op, values);
  TORCH_CHECK(values.size(0) == n * n, op, ": values must have n·n = ", n * n, " rows, given ", values.size(0));
  check_device(op, queries, values);
  const auto [weights, slots] = select(op, half_scores(queries, sub_keys), k, true);
  return {weighted_bag(values, slots.flatten(1), weights.flatten(1)), weights, slots};
}

// ---- the touched rows -------------------------------------------------------------------------------------

// The factors of a row gradient, sorted by slot.
class Factors {
 public:
  Factors(const char* op, const Tensor& grad, const Tensor& slots, const Tensor& weights, int64_t n_slots,
          at::ScalarType dtype)
      : n_slots_(n_slots) {
    check_weights(op, slots, weights);
    check_slots(op, slots, grad);
    TORCH_CHECK(grad.size(1) <= std::numeric_limits<int>::max(), op, ": dim must be less than 2^31, given ",
                grad.size(1));
    check_device(op, grad, slots, weights);
    grad_ = as(grad, dtype);
    weights_ = as(weights, dtype);
    const Tensor places = slots.contiguous();
    const int64_t pairs = slots.numel();
    const Tensor positions = at::arange(pairs, slots.options().dtype(at::kInt));
    slots_ = at::empty_like(places);
    positions_ = at::empty_like(positions);
    if (pairs == 0) return;
    const auto sort = [&](void* temporary, size_t& bytes) {
      C10_CUDA_CHECK(sort_pairs(temporary, bytes, data<int64_t>(places), mutable_data<int64_t>(slots_),
                                data<int32_t>(positions), mutable_data<int32_t>(positions_), pairs, n_slots,
                                c10::cuda::getCurrentCUDAStream()));
    };
    size_t bytes = 0;
    sort(nullptr, bytes);
    const Tensor temporary =
        at::empty({static_cast<int64_t>(bytes) + 1}, slots.options().dtype(at::kByte));  // null would ask for the size
    sort(temporary.mutable_data_ptr(), bytes);
  }

  template <class A>
  SortedPairs<A> pairs() const {
    return {data<int64_t>(slots_),
            data<int32_t>(positions_),
            data<A>(weights_),
            data<A>(grad_),
            slots_.numel(),
            n_slots_,
            static_cast<int>(slots_.size(1)),
            static_cast<int>(grad_.size(1))};
  }
  Tensor sorted_slots() const { return slots_.flatten(); }

 private:
  Tensor grad_, weights_, slots_, positions_;
  int64_t n_slots_;
};

std::tuple<Tensor, Tensor> weighted_bag_values_backward(const Tensor& grad, const Tensor& slots, const Tensor& weights,
                                                        int64_t n_slots) {
  const char* op = "weighted_bag_values_backward";
  const c10::cuda::CUDAGuard guard(grad.device());
  const Factors factors(op, grad, slots, weights, n_slots, accumulation(grad));
  const Tensor sorted = factors.sorted_slots();
  if (sorted.numel() == 0) return {sorted, at::empty({0, grad.size(1)}, grad.options())};
  const Tensor first = at::ones({1}, sorted.options().dtype(at::kBool));
  const Tensor firsts = at::cat({first, sorted.slice(0, 1).ne(sorted.slice(0, 0, -1))});
  const Tensor ranks = firsts.cumsum(0).sub(1);
  const Tensor touched = sorted.masked_select(firsts);
  const Tensor rows = at::empty({touched.size(0), grad.size(1)}, grad.options());
  with_values(op, grad.scalar_type(), [&](auto type) {
    using S = decltype(type);
    checked_launch(factors.pairs<Wide<S>>(), Rows<S>{data<int64_t>(ranks), mutable_data<S>(rows)});
  });
  return {touched, rows};
}

Tensor rows_squared_norm(const Tensor& grad, const Tensor& slots, const Tensor& weights, int64_t n_slots) {
  const c10::cuda::CUDAGuard guard(grad.device());
  const at::ScalarType dtype = accumulation(grad, weights);
  const Factors factors("rows_squared_norm", grad, slots, weights, n_slots, dtype);
  const Tensor norms = at::zeros({slots.numel()}, grad.options().dtype(at::kDouble));
  with_scores(dtype, [&](auto type) {
    using A = decltype(type);
    checked_launch(factors.pairs<A>(), SquaredNorm<A>{mutable_data<double>(norms)});
  });
  return norms.sum();
}

// The tensors of a table that a step updates: values (n_slots, V), and those of that shape which Adam keeps.
struct AdamTable {
  const Tensor &values, &exp_avg, &exp_avg_sq;
  const std::optional<Tensor>& master;

  void check(const char* op, at::ScalarType wide) const {
    check_table(op, values);
    TORCH_CHECK(values.is_contiguous(), op, ": values must be contiguous, given strides ", values.strides());
    const auto check_state = [&](const char* name, const Tensor& state) {
      check_device(op, values, state);
      TORCH_CHECK(state.sizes() == values.sizes() && state.scalar_type() == wide && state.is_contiguous(), op, ": ",
                  name, " must be contiguous ", wide, " of values' shape ", values.sizes(), ", given ",
                  state.scalar_type(), " ", state.sizes(), state.is_contiguous() ? "" : ", not contiguous");
    };
    check_state("exp_avg", exp_avg);
    check_state("exp_avg_sq", exp_avg_sq);
    if (master) check_state("master", *master);
  }
};

void update_rows(const char* op, const AdamTable& table, const Factors& factors, const AdamStep& step) {
  with_values(op, table.values.scalar_type(), [&](auto type) {
    using S = decltype(type);
    using A = Wide<S>;
    checked_launch(factors.pairs<A>(),
                   Adam<S>{mutable_data<S>(table.values), mutable_data<A>(table.exp_avg),
                           mutable_data<A>(table.exp_avg_sq), table.master ? mutable_data<A>(*table.master) : nullptr,
                           table.master.has_value(), numbers_of<A>(step)});
  });
}

// The operator's schema has scalars only.
void rows_adam_(const Tensor& values, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                const std::optional<Tensor>& master, const Tensor& grad, const Tensor& slots, const Tensor& weights,
                double scale, double lr, double beta1, double beta2, double eps, double weight_decay, int64_t step) {
  const char* op = "rows_adam_";
  const at::ScalarType dtype = accumulation(values);
  const AdamTable table{values, exp_avg, exp_avg_sq, master};
  table.check(op, dtype);
  check_device(op, values, grad);
  TORCH_CHECK(grad.dim() == 2 && grad.size(1) == values.size(1), op, ": grad must have values' dim ", values.size(1),
              ", given ", grad.sizes());
  TORCH_CHECK(step >= 1, op, ": step counts from 1, given ", step);
  const c10::cuda::CUDAGuard guard(values.device());
  const Factors factors(op, grad, slots, weights, values.size(0), dtype);
  update_rows(op, table, factors, {scale, lr, beta1, beta2, eps, weight_decay, step});
}

}  // namespace

TORCH_LIBRARY_IMPL(memory_layers, CUDA, m) {
  m.impl("product_key_select", product_key_select);
  m.impl("product_key_select_backward", product_key_select_backward);
  m.impl("product_key_topk", product_key_topk);
  m.impl("product_key_topk_backward", product_key_topk_backward);
  m.impl("weighted_bag", weighted_bag);
  m.impl("weighted_bag_weights_backward", weighted_bag_weights_backward);
  m.impl("weighted_bag_values_backward", weighted_bag_values_backward);
  m.impl("product_key_memory", product_key_memory);
  m.impl("rows_squared_norm", rows_squared_norm);
  m.impl("rows_adam_", rows_adam_);
}

}  // namespace memory_layers::cuda
