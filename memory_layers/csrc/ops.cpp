// memory_layers' CPU operators: checks, scratch memory and threads around the inner loops of kernels.h, and their
// registration with PyTorch. library.py defines the schemas, gradients and fake implementations; reference/ defines the
// operators.
//
// Axes: T tokens, H heads, N sub-keys per half (N * N slots), K selected slots, D key dimension, V value dimension,
// bag = H * K slots of one token, P = T * bag pairs (token, slot), U distinct slots.
// No result depends on the number of threads: how work is cut depends on the shape alone wherever it matters, and sums
// are added in one order.
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.h"
#include "tensors.h"

namespace memory_layers {
namespace {

using at::Tensor;
using native::ceil_div;
using native::data;
using native::dispatch;
using native::level;
using native::mutable_data;
using native::wide_type;

// The number format in which x and y are accumulated.
at::ScalarType wide_type(const Tensor& x, const Tensor& y) {
  return y.scalar_type() == at::kDouble ? at::kDouble : wide_type(x);
}

Tensor widened(const Tensor& x, at::ScalarType type) { return x.to(type).contiguous(); }

void check_floating(const char* op, const char* name, const Tensor& x, int64_t dim) {
  TORCH_CHECK(x.dim() == dim && at::isFloatingType(x.scalar_type()), op, ": ", name, " must be floating point with ",
              dim, " axes, given ", x.scalar_type(), " ", x.sizes());
}

// ---- selection -----------------------------------------------------------------------------------------------------

// The memory of SelectMemory, for one thread.
template <class A>
class SelectScratch {
 public:
  using I = Int<A>;

  SelectScratch(int64_t n, int64_t k) {
    const int64_t many = std::max(n, pairs(k)), kept = std::min(k + 1, n);
    const int64_t sizes[] = {n, n, many, many, many, many, many, kept, kept, kept, kept};
    int64_t total = 64;
    for (const int64_t size : sizes) total += padded(size);
    memory_.resize(total);
    void* start = memory_.data();
    size_t space = total;
    std::byte* next = static_cast<std::byte*>(std::align(64, total - 64, start, space));
    std::byte* parts[std::size(sizes)];
    for (size_t i = 0; i < std::size(sizes); next += padded(sizes[i++])) parts[i] = next;
    auto a = [&](int i) { return reinterpret_cast<A*>(parts[i]); };
    auto integers = [&](int i) { return reinterpret_cast<I*>(parts[i]); };
    view_ = {a(0), a(1), a(2), integers(3), a(4), integers(5), integers(6), {a(7), a(8)}, {integers(9), integers(10)}};
  }
  const SelectMemory<A>& view() const { return view_; }

 private:
  static int64_t padded(int64_t size) { return ceil_div((size + kSlack) * sizeof(A), 64) * 64; }

  std::vector<std::byte> memory_;
  SelectMemory<A> view_;
};

// Integers in the order of the scores: NaN above +inf, -0 = +0.
template <class A>
Int<A> rank(A score) {
  using I = Int<A>;
  if (std::isnan(score)) return std::numeric_limits<I>::max();
  score += 0;
  const I bits = std::bit_cast<I>(score);
  return bits < 0 ? bits ^ std::numeric_limits<I>::max() : bits;
}

// The k best of all n * n sums, by exhaustive search; for the rows that `select` returns. `bound`: the k-th best is not
// below; where it is not NaN the half scores have neither infinities nor NaN.
template <class A>
void search(int64_t n, int64_t k, const A* first, const A* second, A bound, A* scores, int64_t* slots) {
  using I = Int<A>;
  const bool finite = !std::isnan(bound);
  const A most = *std::max_element(second, second + n);
  I floor = finite ? rank(bound) - 1 : std::numeric_limits<I>::min();  // only what is above can be among the best
  std::vector<std::pair<I, int64_t>> found;
  found.reserve(2 * k);
  const auto better = [](const auto& x, const auto& y) {
    return x.first != y.first ? x.first > y.first : x.second < y.second;
  };
  for (int64_t i = 0; i < n; ++i) {
    if (finite && rank(first[i] + most) <= floor) continue;
    for (int64_t j = 0; j < n; ++j) {
      const I key = rank(first[i] + second[j]);
      if (key <= floor) continue;
      found.emplace_back(key, i * n + j);
      if (static_cast<int64_t>(found.size()) < 2 * k) continue;
      std::nth_element(found.begin(), found.begin() + k - 1, found.end(), better);
      found.resize(k);
      floor = found[k - 1].first;  // later slots are higher, so an equal sum is not enough
    }
  }
  std::partial_sort(found.begin(), found.begin() + k, found.end(), better);
  for (int64_t i = 0; i < k; ++i) {
    slots[i] = found[i].second;
    scores[i] = first[slots[i] / n] + second[slots[i] % n];
  }
}

template <class A>
void select_row(int64_t n, int64_t k, const A* first, const A* second, const SelectMemory<A>& memory, A* scores,
                int64_t* slots) {
  A bound;
  if (!kernels<A>(level()).select(n, k, first, second, memory, scores, slots, &bound))
    search(n, k, first, second, bound, scores, slots);
}

void check_k(const char* op, int64_t k, int64_t n) {
  TORCH_CHECK(k >= 1 && k <= n, op, ": k must lie between 1 and the number of sub-keys n = ", n, ", given ", k);
  TORCH_CHECK(n <= 46340, op, ": n * n slots must be numbered in 31 bits, given n = ", n);
}

template <class F>
void dispatch_wide(at::ScalarType type, const F& body) {
  if (type == at::kDouble)
    body(double{});
  else
    body(float{});
}

// half_scores (T, H, 2, N) -> scores (T, H, K), slots (T, H, K)
std::tuple<Tensor, Tensor> product_key_select(const Tensor& half_scores, int64_t k) {
  const char* op = "product_key_select";
  check_floating(op, "half_scores", half_scores, 4);
  TORCH_CHECK(half_scores.size(2) == 2, op, ": half_scores must be (tokens, heads, 2, n), given ", half_scores.sizes());
  const int64_t tokens = half_scores.size(0), heads = half_scores.size(1), n = half_scores.size(3);
  check_k(op, k, n);
  Tensor rows = half_scores.to(wide_type(half_scores));
  if (rows.stride(3) != 1) rows = rows.contiguous();
  Tensor scores = at::empty({tokens, heads, k}, rows.options());
  Tensor slots = at::empty({tokens, heads, k}, rows.options().dtype(at::kLong));
  dispatch_wide(rows.scalar_type(), [&](auto type) {
    using A = decltype(type);
    at::parallel_for(0, tokens * heads, 8, [&](int64_t begin, int64_t end) {
      const SelectScratch<A> scratch(n, k);
      for (int64_t row = begin; row < end; ++row) {
        const A* first = data<A>(rows) + row / heads * rows.stride(0) + row % heads * rows.stride(1);
        select_row<A>(n, k, first, first + rows.stride(2), scratch.view(), mutable_data<A>(scores) + row * k,
                      mutable_data<int64_t>(slots) + row * k);
      }
    });
  });
  return {scores, slots};
}

void check_topk(const char* op, const Tensor& queries, const Tensor& sub_keys) {
  check_floating(op, "queries", queries, 3);
  check_floating(op, "sub_keys", sub_keys, 4);
  TORCH_CHECK(sub_keys.size(0) == queries.size(1) && sub_keys.size(1) == 2 && 2 * sub_keys.size(3) == queries.size(2),
              op, ": sub_keys must be (heads, 2, n, key_dim / 2) for queries (tokens, heads, key_dim), given ",
              sub_keys.sizes(), " and ", queries.sizes());
}

// Lookup, with or without softmax over the scores. It computes the half scores of some tokens and one head at a time
// and selects from them while they lie in the cache; they are never all in memory.
std::tuple<Tensor, Tensor> lookup(const char* op, const Tensor& queries, const Tensor& sub_keys, int64_t k,
                                  bool softmax) {
  check_topk(op, queries, sub_keys);
  const int64_t tokens = queries.size(0), heads = queries.size(1), half = sub_keys.size(3), n = sub_keys.size(2);
  check_k(op, k, n);
  const at::ScalarType type = wide_type(queries, sub_keys);
  const Tensor q = widened(queries, type), keys = widened(sub_keys, type);
  Tensor scores = at::empty({tokens, heads, k}, q.options());
  Tensor slots = at::empty({tokens, heads, k}, q.options().dtype(at::kLong));
  if (scores.numel() == 0) return {scores, slots};
  // 16 to 128 tokens, 512 KiB of scores. A matrix product's bits may depend on its size, so this may not depend on the
  // number of threads.
  const int64_t most = std::clamp<int64_t>((1 << 16) / n, 16, 128);
  const int64_t block = std::clamp<int64_t>(ceil_div(tokens * heads, 32), 16, most);
  const int64_t tasks = ceil_div(tokens, block) * heads;
  dispatch_wide(type, [&](auto value) {
    using A = decltype(value);
    const auto& loops = kernels<A>(level());
    // A single task would run outside a parallel region, its matrix products on all threads: there are at least two.
    at::parallel_for(0, std::max<int64_t>(tasks, 2), 1, [&](int64_t begin, int64_t end) {
      if (begin >= tasks) return;
      end = std::min(end, tasks);
      // Autograd has been dealt with in the calling thread only.
      const at::AutoDispatchBelowADInplaceOrView guard;
      const SelectScratch<A> scratch(n, k);
      const Tensor memory = at::empty({2, block, n}, q.options());
      for (int64_t task = begin; task < end; ++task) {
        const int64_t head = task % heads, start = task / heads * block, count = std::min(block, tokens - start);
        const Tensor some = q.narrow(0, start, count).select(1, head);
        for (int64_t h = 0; h < 2; ++h) {
          Tensor out = memory.select(0, h).narrow(0, 0, count);
          at::mm_out(out, some.narrow(1, h * half, half), keys.select(0, head).select(0, h).t());
        }
        for (int64_t t = 0; t < count; ++t) {
          const int64_t place = ((start + t) * heads + head) * k;
          const A* first = data<A>(memory) + t * n;
          select_row<A>(n, k, first, first + block * n, scratch.view(), mutable_data<A>(scores) + place,
                        mutable_data<int64_t>(slots) + place);
          if (softmax) loops.softmax(k, mutable_data<A>(scores) + place);
        }
      }
    });
  });
  return {scores, slots};
}

std::tuple<Tensor, Tensor> product_key_topk(const Tensor& queries, const Tensor& sub_keys, int64_t k) {
  return lookup("product_key_topk", queries, sub_keys, k, false);
}

// Throws unless 0 <= slot < n_slots for all.
void check_slots(const char* op, const Tensor& slots, int64_t n_slots) {
  const int64_t* all = data<int64_t>(slots);
  std::atomic<int64_t> wrong = -1;
  at::parallel_for(0, slots.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    bool bad = false;
    for (int64_t i = begin; i < end; ++i) bad |= static_cast<uint64_t>(all[i]) >= static_cast<uint64_t>(n_slots);
    if (bad)
      for (int64_t i = begin; i < end; ++i)
        if (static_cast<uint64_t>(all[i]) >= static_cast<uint64_t>(n_slots)) wrong = i;
  });
  TORCH_CHECK_INDEX(wrong < 0, op, ": slots must lie in [0, ", n_slots, "), given ", all[wrong]);
}

// grad, slots (T, H, K) -> (T, H, 2, N)
Tensor product_key_select_backward(const Tensor& grad, const Tensor& slots, int64_t n) {
  const char* op = "product_key_select_backward";
  check_floating(op, "grad", grad, 3);
  TORCH_CHECK(slots.sizes() == grad.sizes() && slots.scalar_type() == at::kLong, op, ": slots must be int64 ",
              grad.sizes(), ", given ", slots.scalar_type(), " ", slots.sizes());
  const Tensor g = widened(grad, wide_type(grad)), s = slots.contiguous();
  check_slots(op, s, n * n);
  const int64_t rows = g.size(0) * g.size(1), k = g.size(2);
  Tensor out = at::empty({g.size(0), g.size(1), 2, n}, g.options());
  if (out.numel() == 0) return out.to(grad.scalar_type());
  dispatch_wide(g.scalar_type(), [&](auto value) {
    using A = decltype(value);
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        A* to = mutable_data<A>(out) + row * 2 * n;
        std::fill(to, to + 2 * n, A(0));
        for (int64_t i = row * k; i < (row + 1) * k; ++i) {
          const int64_t slot = data<int64_t>(s)[i];
          to[slot / n] += data<A>(g)[i];
          to[n + slot % n] += data<A>(g)[i];
        }
      }
    });
  });
  return out.to(grad.scalar_type());
}

// grad, slots (T, H, K), queries (T, H, D), sub_keys (H, 2, N, D/2) -> as queries and sub_keys. A row of the gradient
// of the half scores has K entries that are not zero, of N: they are multiplied one by one.
std::tuple<Tensor, Tensor> product_key_topk_backward(const Tensor& grad, const Tensor& slots, const Tensor& queries,
                                                     const Tensor& sub_keys) {
  const char* op = "product_key_topk_backward";
  check_topk(op, queries, sub_keys);
  check_floating(op, "grad", grad, 3);
  const int64_t tokens = queries.size(0), heads = queries.size(1), half = sub_keys.size(3), n = sub_keys.size(2);
  TORCH_CHECK(grad.size(0) == tokens && grad.size(1) == heads && slots.sizes() == grad.sizes() &&
                  slots.scalar_type() == at::kLong,
              op, ": grad and int64 slots must be (", tokens, ", ", heads, ", k), given ", grad.sizes(), " and ",
              slots.scalar_type(), " ", slots.sizes());
  const int64_t k = grad.size(2);
  const at::ScalarType type = wide_type(queries, sub_keys);
  const Tensor q = widened(queries, type), keys = widened(sub_keys, type), g = widened(grad, type);
  const Tensor s = slots.contiguous();
  check_slots(op, s, n * n);
  Tensor grad_queries = at::zeros(q.sizes(), q.options()), grad_keys = at::zeros(keys.sizes(), keys.options());
  if (g.numel() == 0 || half == 0)
    return {grad_queries.to(queries.scalar_type()), grad_keys.to(sub_keys.scalar_type())};
  // Index of each slot in either half, (2, T, H, K); one division per slot.
  Tensor indices = at::empty({2, tokens, heads, k}, s.options());
  dispatch_wide(type, [&](auto value) {
    using A = decltype(value);
    const auto& loops = kernels<A>(level());
    const int64_t pairs_of_half = tokens * heads * k;
    int64_t* index = mutable_data<int64_t>(indices);
    at::parallel_for(0, tokens * heads, 8, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t i = row * k; i < (row + 1) * k; ++i) {
          const auto slot = static_cast<uint64_t>(data<int64_t>(s)[i]);
          index[i] = static_cast<int64_t>(slot / n);
          index[pairs_of_half + i] = static_cast<int64_t>(slot % n);
        }
        for (int64_t h = 0; h < 2; ++h)
          loops.sum_rows(half, data<A>(keys) + (row % heads * 2 + h) * n * half,
                         {index + h * pairs_of_half + row * k, k, k}, data<A>(g) + row * k,
                         mutable_data<A>(grad_queries) + (row * 2 + h) * half);
      }
    });
    // Each head and half on its own, token by token, in slices of columns if there are threads for them.
    const int64_t wanted = ceil_div(at::get_num_threads(), 2 * heads), slices = std::min(wanted, ceil_div(half, 16));
    const int64_t width = ceil_div(ceil_div(half, slices), 16) * 16;
    at::parallel_for(0, 2 * heads * slices, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t head = task / slices / 2, h = task / slices % 2, from = task % slices * width;
        const int64_t columns = std::min(width, half - from);
        if (columns <= 0) continue;
        A* to = mutable_data<A>(grad_keys) + (head * 2 + h) * n * half + from;
        for (int64_t t = 0; t < tokens; ++t) {
          const int64_t row = t * heads + head;
          const A* query = data<A>(q) + (row * 2 + h) * half + from;
          const int64_t* places = index + h * pairs_of_half + row * k;
          for (int64_t i = 0; i < k; ++i) loops.add_row(columns, data<A>(g)[row * k + i], query, to + places[i] * half);
        }
      }
    });
  });
  return {grad_queries.to(queries.scalar_type()), grad_keys.to(sub_keys.scalar_type())};
}

// ---- weighted sums of rows -----------------------------------------------------------------------------------------

void check_pairs(const char* op, const Tensor& slots, const Tensor& weights) {
  TORCH_CHECK(slots.dim() == 2 && slots.scalar_type() == at::kLong && weights.sizes() == slots.sizes() &&
                  at::isFloatingType(weights.scalar_type()),
              op, ": slots (int64) and weights (floating point) must have one shape (tokens, bag), given ",
              slots.scalar_type(), " ", slots.sizes(), " and ", weights.scalar_type(), " ", weights.sizes());
}

// values (n_slots, V), slots (T, bag) in range, weights (T, bag) of what values are accumulated in -> (T, V)
Tensor bag_of_rows(const char* op, const Tensor& values, const Tensor& slots, const Tensor& weights) {
  const int64_t tokens = slots.size(0), bag = slots.size(1), dim = values.size(1);
  Tensor out = at::empty({tokens, dim}, values.options());
  if (out.numel() == 0) return out;
  dispatch(op, values, [&](auto type) {
    using T = decltype(type);
    const auto& loops = kernels<T>(level());
    at::parallel_for(0, tokens, 4, [&](int64_t begin, int64_t end) {
      std::vector<Acc<T>> sum(dim);
      for (int64_t t = begin; t < end; ++t) {
        loops.sum_rows(dim, data<T>(values), {data<int64_t>(slots) + t * bag, bag, (end - t) * bag},
                       data<Acc<T>>(weights) + t * bag, sum.data());
        loops.narrow(dim, sum.data(), mutable_data<T>(out) + t * dim);
      }
    });
  });
  return out;
}

Tensor weighted_bag(const Tensor& values, const Tensor& slots, const Tensor& weights) {
  const char* op = "weighted_bag";
  check_floating(op, "values", values, 2);
  check_pairs(op, slots, weights);
  const Tensor s = slots.contiguous();
  check_slots(op, s, values.size(0));
  return bag_of_rows(op, values.contiguous(), s, widened(weights, wide_type(values)));
}

// (T, V), (n_slots, V), (T, bag) -> (T, bag)
Tensor weighted_bag_weights_backward(const Tensor& grad, const Tensor& values, const Tensor& slots) {
  const char* op = "weighted_bag_weights_backward";
  check_floating(op, "values", values, 2);
  check_floating(op, "grad", grad, 2);
  const int64_t tokens = slots.size(0), dim = values.size(1);
  TORCH_CHECK(slots.dim() == 2 && slots.scalar_type() == at::kLong && grad.size(0) == tokens && grad.size(1) == dim, op,
              ": slots must be int64 (tokens, bag) and grad (tokens, ", dim, "), given ", slots.scalar_type(), " ",
              slots.sizes(), " and ", grad.sizes());
  const int64_t bag = slots.size(1);
  const Tensor s = slots.contiguous(), rows = values.contiguous(), g = widened(grad, wide_type(values));
  check_slots(op, s, values.size(0));
  Tensor out = at::zeros({tokens, bag}, g.options());
  if (out.numel() == 0 || dim == 0) return out.to(wide_type(grad, values));
  dispatch(op, rows, [&](auto type) {
    using T = decltype(type);
    const auto& loops = kernels<T>(level());
    at::parallel_for(0, tokens, 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        loops.dot_rows(dim, data<T>(rows), {data<int64_t>(s) + t * bag, bag, (end - t) * bag},
                       data<Acc<T>>(g) + t * dim, mutable_data<Acc<T>>(out) + t * bag);
    });
  });
  return out.to(wide_type(grad, values));
}

std::tuple<Tensor, Tensor, Tensor> product_key_memory(const Tensor& queries, const Tensor& sub_keys,
                                                      const Tensor& values, int64_t k) {
  const char* op = "product_key_memory";
  check_floating(op, "values", values, 2);
  check_topk(op, queries, sub_keys);
  const int64_t n = sub_keys.size(2);
  TORCH_CHECK(values.size(0) == n * n, op, ": values must have n * n = ", n * n, " rows, given ", values.sizes());
  const auto [weights, slots] = lookup(op, queries, sub_keys, k, true);
  const int64_t bag = weights.size(1) * k;
  const Tensor out = bag_of_rows(op, values.contiguous(), slots.view({weights.size(0), bag}),
                                 widened(weights, wide_type(values)).view({weights.size(0), bag}));
  return {out, weights, slots};
}

// ---- gradients of rows ---------------------------------------------------------------------------------------------

// The pairs (t, b) of a factored gradient by slot, those of one slot in the order of their positions t * bag + b.
struct Pairs {
  int64_t rows;    // U
  Tensor slots;    // (P) int64, of which U are used: ascending
  Tensor starts;   // (P + 1) int64, of which U + 1 are used: where each slot's pairs begin
  Tensor tokens;   // (P) int64
  Tensor weights;  // (P)
  Tensor grad;     // (T, V) of weights' type

  // Calls body(row, sum) for rows begin <= row < end: sum (V) is the gradient of that row.
  template <class A, class F>
  void gradients(int64_t begin, int64_t end, const F& body) const {
    const int64_t dim = grad.size(1), *start = data<int64_t>(starts), all = start[end];
    if (dim == 0) return;
    const auto& loops = kernels<A>(level());
    std::vector<A> sum(dim);
    for (int64_t row = begin; row < end; ++row) {
      loops.sum_rows(dim, data<A>(grad),
                     {data<int64_t>(tokens) + start[row], start[row + 1] - start[row], all - start[row]},
                     data<A>(weights) + start[row], sum.data());
      body(row, sum.data());
    }
  }
};

// Sorts by slot: stable radix sort, least digit first, of words (slot, position) of 32 bits each.
Pairs by_slot(const char* op, const Tensor& grad, const Tensor& slots, const Tensor& weights, int64_t n_slots,
              at::ScalarType type) {
  check_floating(op, "grad", grad, 2);
  check_pairs(op, slots, weights);
  TORCH_CHECK(grad.size(0) == slots.size(0), op, ": grad must be (tokens, dim) of ", slots.size(0), " tokens, given ",
              grad.sizes());
  const int64_t count = slots.numel(), bag = slots.size(1), limit = int64_t(1) << 32;
  TORCH_CHECK(n_slots < limit && count < limit, op, ": slots and pairs must each be fewer than 2^32, given ", n_slots,
              " and ", count);
  const Tensor s = slots.contiguous(), w = widened(weights, type);
  check_slots(op, s, n_slots);
  Tensor first = at::empty({count}, s.options()), second = at::empty({count}, s.options());
  auto *from = mutable_data<uint64_t>(first), *to = mutable_data<uint64_t>(second);
  for (int64_t i = 0; i < count; ++i) from[i] = static_cast<uint64_t>(data<int64_t>(s)[i]) << 32 | i;
  const int bits = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(n_slots, 2) - 1));
  const int passes = (bits + 10) / 11, digit = (bits + passes - 1) / passes;
  std::vector<int64_t> places(int64_t(1) << digit);
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = 32 + pass * digit;
    const uint64_t mask = places.size() - 1;
    std::fill(places.begin(), places.end(), 0);
    for (int64_t i = 0; i < count; ++i) ++places[from[i] >> shift & mask];
    int64_t sum = 0;
    for (int64_t& place : places) sum += std::exchange(place, sum);
    for (int64_t i = 0; i < count; ++i) to[places[from[i] >> shift & mask]++] = from[i];
    std::swap(from, to);
  }
  Pairs pairs{0,
              at::empty({count}, s.options()),
              at::empty({count + 1}, s.options()),
              at::empty({count}, s.options()),
              at::empty({count}, w.options()),
              widened(grad, type)};
  int64_t *row = mutable_data<int64_t>(pairs.slots), *start = mutable_data<int64_t>(pairs.starts);
  for (int64_t i = 0; i < count; ++i) {
    const auto slot = static_cast<int64_t>(from[i] >> 32);
    if (i > 0 && slot == row[pairs.rows - 1]) continue;
    row[pairs.rows] = slot;
    start[pairs.rows++] = i;
  }
  start[pairs.rows] = count;
  dispatch_wide(type, [&](auto value) {
    using A = decltype(value);
    at::parallel_for(0, count, 1 << 13, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto position = static_cast<uint32_t>(from[i]);
        mutable_data<int64_t>(pairs.tokens)[i] = position / static_cast<uint32_t>(bag);
        mutable_data<A>(pairs.weights)[i] = data<A>(w)[position];
      }
    });
  });
  return pairs;
}

// -> rows (U) ascending, their gradients (U, V) in the type of grad
std::tuple<Tensor, Tensor> weighted_bag_values_backward(const Tensor& grad, const Tensor& slots, const Tensor& weights,
                                                        int64_t n_slots) {
  const at::ScalarType type = wide_type(grad, weights);
  const Pairs pairs = by_slot("weighted_bag_values_backward", grad, slots, weights, n_slots, type);
  const int64_t dim = grad.size(1);
  Tensor out = at::empty({pairs.rows, dim}, pairs.grad.options());
  dispatch_wide(type, [&](auto value) {
    using A = decltype(value);
    at::parallel_for(0, pairs.rows, 16, [&](int64_t begin, int64_t end) {
      pairs.gradients<A>(
          begin, end, [&](int64_t row, const A* sum) { std::copy(sum, sum + dim, mutable_data<A>(out) + row * dim); });
    });
  });
  return {pairs.slots.narrow(0, 0, pairs.rows).clone(), out.to(grad.scalar_type())};
}

Tensor rows_squared_norm(const Tensor& grad, const Tensor& slots, const Tensor& weights, int64_t n_slots) {
  const at::ScalarType type = wide_type(grad, weights);
  const Pairs pairs = by_slot("rows_squared_norm", grad, slots, weights, n_slots, type);
  const int64_t chunks = std::min<int64_t>(pairs.rows, 256), step = chunks ? ceil_div(pairs.rows, chunks) : 0;
  std::vector<double> sums(chunks);
  dispatch_wide(type, [&](auto value) {
    using A = decltype(value);
    const auto& loops = kernels<A>(level());
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = std::min(chunk * step, pairs.rows), last = std::min(first + step, pairs.rows);
        pairs.gradients<A>(first, last,
                           [&](int64_t, const A* sum) { sums[chunk] += loops.squared_norm(grad.size(1), sum); });
      }
    });
  });
  Tensor out = at::zeros({}, grad.options().dtype(at::kDouble));
  for (const double sum : sums) *mutable_data<double>(out) += sum;
  return out;
}

template <class E>
void prefetch_row(const E* row, int64_t dim) {
#if defined(__GNUC__) || defined(__clang__)
  for (int64_t v = 0; v < dim; v += 64 / sizeof(E)) __builtin_prefetch(row + v, 1, 2);
#endif
}

// The tensors of a table that a step updates: values (n_slots, V), and those of that shape which Adam keeps.
struct AdamTable {
  const Tensor &values, &exp_avg, &exp_avg_sq;
  const std::optional<Tensor>& master;

  void check(const char* op, at::ScalarType wide) const {
    check_floating(op, "values", values, 2);
    TORCH_CHECK(values.is_contiguous(), op, ": values must be contiguous");
    const auto check_state = [&](const char* name, const Tensor& state) {
      TORCH_CHECK(state.sizes() == values.sizes() && state.scalar_type() == wide && state.is_contiguous(), op, ": ",
                  name, " must be contiguous ", wide, " ", values.sizes(), ", given ", state.scalar_type(), " ",
                  state.sizes());
    };
    check_state("exp_avg", exp_avg);
    check_state("exp_avg_sq", exp_avg_sq);
    if (master) check_state("master", *master);
  }
};

void update_rows(const char* op, const AdamTable& table, const Pairs& pairs, const AdamStep& step) {
  const int64_t dim = table.values.size(1);
  dispatch(op, table.values, [&](auto value) {
    using T = decltype(value);
    using A = Acc<T>;
    const AdamNumbers<A> numbers = numbers_of<A>(step);
    const auto& loops = kernels<T>(level());
    const int64_t* slot = data<int64_t>(pairs.slots);
    T* const values = mutable_data<T>(table.values);
    A *const m = mutable_data<A>(table.exp_avg), *const v = mutable_data<A>(table.exp_avg_sq);
    A* const wide = table.master ? mutable_data<A>(*table.master) : nullptr;
    at::parallel_for(0, pairs.rows, 16, [&](int64_t begin, int64_t end) {
      pairs.gradients<A>(begin, end, [&](int64_t row, const A* sum) {
        if (row + 2 < end) {
          const int64_t next = slot[row + 2] * dim;
          prefetch_row(m + next, dim);
          prefetch_row(v + next, dim);
          prefetch_row(values + next, dim);
          if (wide) prefetch_row(wide + next, dim);
        }
        const int64_t place = slot[row] * dim;
        loops.adam(dim, numbers, sum, values + place, m + place, v + place, wide ? wide + place : nullptr);
      });
    });
  });
}

// The operator's schema has scalars only.
void rows_adam_(const Tensor& values, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                const std::optional<Tensor>& master, const Tensor& grad, const Tensor& slots, const Tensor& weights,
                double scale, double lr, double beta1, double beta2, double eps, double weight_decay, int64_t step) {
  const char* op = "rows_adam_";
  const at::ScalarType type = wide_type(values);
  const AdamTable table{values, exp_avg, exp_avg_sq, master};
  table.check(op, type);
  TORCH_CHECK(grad.dim() == 2 && grad.size(1) == values.size(1), op, ": grad must be (tokens, ", values.size(1),
              "), given ", grad.sizes());
  TORCH_CHECK(step >= 1, op, ": step counts from 1, given ", step);
  const Pairs pairs = by_slot(op, grad, slots, weights, values.size(0), type);
  update_rows(op, table, pairs, {scale, lr, beta1, beta2, eps, weight_decay, step});
}

}  // namespace

TORCH_LIBRARY_IMPL(memory_layers, CPU, m) {
  m.impl("product_key_topk", product_key_topk);
  m.impl("product_key_topk_backward", product_key_topk_backward);
  m.impl("product_key_select", product_key_select);
  m.impl("product_key_select_backward", product_key_select_backward);
  m.impl("weighted_bag", weighted_bag);
  m.impl("weighted_bag_weights_backward", weighted_bag_weights_backward);
  m.impl("weighted_bag_values_backward", weighted_bag_values_backward);
  m.impl("product_key_memory", product_key_memory);
  m.impl("rows_squared_norm", rows_squared_norm);
  m.impl("rows_adam_", rows_adam_);
}

}  // namespace memory_layers
