// depth_adaptive's CPU operators: checks, scratch memory and threads around the loops of kernels.h, and their
// registration with PyTorch. ops.py says what the operators mean.
//
// Axes: A queries, M rows of memory, X lists of t places, D dimension, V vocabulary. No result depends on the number of
// threads: one thread computes a query or a row.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "tensors.h"

namespace depth_adaptive {
namespace {

using at::Tensor;
using native::data;
using native::dispatch;
using native::level;
using native::mutable_data;

void check_range(const char* op, const char* name, const Tensor& x, int64_t end, bool below_zero) {
  const int64_t* all = data<int64_t>(x);
  for (int64_t i = 0; i < x.numel(); ++i)
    TORCH_CHECK_INDEX(all[i] < end && (below_zero || all[i] >= 0), op, ": ", name, " must be below ", end,
                      below_zero ? "" : " and at least 0", ", given ", all[i]);
}

Tensor attend(const Tensor& queries, const Tensor& memory, const Tensor& places, const std::optional<Tensor>& lists,
              int64_t heads) {
  TORCH_CHECK(queries.dim() == 2 && memory.dim() == 2 && memory.size(1) == 2 * queries.size(1),
              "attend: memory must be (rows, 2D) for queries (A, D), given ", memory.sizes(), " and ", queries.sizes());
  TORCH_CHECK(queries.scalar_type() == memory.scalar_type(), "attend: queries and memory must have one dtype, given ",
              queries.scalar_type(), " and ", memory.scalar_type());
  TORCH_CHECK(heads > 0 && queries.size(1) % heads == 0, "attend: heads must divide D, given ", heads, " and ",
              queries.size(1));
  TORCH_CHECK(places.dim() == 2 && places.scalar_type() == at::kLong, "attend: places must be int64 (X, t), given ",
              places.scalar_type(), " ", places.sizes());
  const int64_t count = queries.size(0), dim = queries.size(1), length = places.size(1);
  TORCH_CHECK(lists ? lists->dim() == 1 && lists->size(0) == count && lists->scalar_type() == at::kLong
                    : places.size(0) == count,
              "attend: a list of places is needed for each of ", count, " queries");
  const Tensor p = places.contiguous(), rows = memory.contiguous();
  const Tensor chosen = lists ? lists->contiguous() : Tensor();
  const Tensor q = queries.stride(1) == 1 ? queries : queries.contiguous();
  check_range("attend", "places", p, rows.size(0), true);
  if (lists) check_range("attend", "lists", chosen, p.size(0), false);
  Tensor out = at::empty({count, dim}, queries.options());
  dispatch("attend", queries, [&](auto type) {
    using T = decltype(type);
    const auto& loops = kernels<T>(level());
    // At least a few microseconds of work for each thread.
    const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, length * dim));
    at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      std::vector<native::Acc<T>> scores(heads * length);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t list = lists ? data<int64_t>(chosen)[i] : i;
        loops.attend(heads, dim / heads, length, data<int64_t>(p) + list * length, data<T>(q) + i * q.stride(0),
                     data<T>(rows), scores.data(), mutable_data<T>(out) + i * dim);
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_(Tensor& logits, const Tensor& targets, double kept, double spread,
                                                  bool gradient) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(),
              "cross_entropy_: logits must be contiguous (rows, V), given ", logits.sizes());
  const int64_t rows = logits.size(0), words = logits.size(1);
  TORCH_CHECK(targets.dim() == 1 && targets.size(0) == rows && targets.scalar_type() == at::kLong,
              "cross_entropy_: targets must be int64 (", rows, "), given ", targets.scalar_type(), " ",
              targets.sizes());
  const Tensor t = targets.contiguous();
  check_range("cross_entropy_", "targets", t, words, false);
  const auto options = logits.options().dtype(native::wide_type(logits));
  Tensor likelihood = at::empty({rows}, options), total = at::empty({rows}, options);
  Tensor right = at::empty({rows}, logits.options().dtype(at::kBool));
  dispatch("cross_entropy_", logits, [&](auto type) {
    using T = decltype(type);
    using A = native::Acc<T>;
    const auto& loops = kernels<T>(level());
    at::parallel_for(
        0, rows, std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, words)), [&](int64_t begin, int64_t end) {
          std::vector<A> scratch(words);
          for (int64_t i = begin; i < end; ++i)
            loops.cross_entropy(words, data<int64_t>(t)[i], (A)kept, (A)spread, gradient,
                                mutable_data<T>(logits) + i * words, scratch.data(), mutable_data<A>(likelihood) + i,
                                mutable_data<A>(total) + i, mutable_data<bool>(right) + i);
        });
  });
  return {likelihood, total, right};
}

Tensor top_probability(const Tensor& logits) {
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0, "top_probability: logits must be (rows, V), given ",
              logits.sizes());
  const Tensor x = logits.contiguous();
  const int64_t rows = x.size(0), words = x.size(1);
  Tensor out = at::empty({rows}, x.options().dtype(native::wide_type(x)));
  dispatch("top_probability", x, [&](auto type) {
    using T = decltype(type);
    using A = native::Acc<T>;
    const auto& loops = kernels<T>(level());
    at::parallel_for(0, rows, std::max<int64_t>(1, (1 << 14) / words), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        mutable_data<A>(out)[i] = loops.top_probability(words, data<T>(x) + i * words);
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY(depth_adaptive, m) {
  m.def("attend(Tensor queries, Tensor memory, Tensor places, Tensor? lists, int heads) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "cross_entropy_(Tensor(a!) logits, Tensor targets, float kept, float spread, bool gradient) -> (Tensor, Tensor, "
      "Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def("top_probability(Tensor logits) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(depth_adaptive, CPU, m) {
  m.impl("attend", attend);
  m.impl("cross_entropy_", cross_entropy_);
  m.impl("top_probability", top_probability);
}

}  // namespace depth_adaptive
