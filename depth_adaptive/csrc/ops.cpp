// depth_adaptive's CPU operator: checks, scratch memory and threads around the loop of kernels.h, and its registration
// with PyTorch. ops.py defines the schema and says what the operator means.
//
// Axes: A queries, M rows of memory, X lists of t places, D dimension. No result depends on the number of threads: each
// query is one thread's.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
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

void check_range(const char* name, const Tensor& x, int64_t end, bool below_zero) {
  const int64_t* all = data<int64_t>(x);
  for (int64_t i = 0; i < x.numel(); ++i)
    TORCH_CHECK_INDEX(all[i] < end && (below_zero || all[i] >= 0), "attend: ", name, " must be below ", end,
                      below_zero ? "" : " and at least 0", ", given ", all[i]);
}

Tensor attend(const Tensor& queries, const Tensor& memory, const Tensor& places,
              const std::optional<Tensor>& lists, int64_t heads) {
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
  check_range("places", p, rows.size(0), true);
  if (lists) check_range("lists", chosen, p.size(0), false);
  Tensor out = at::empty({count, dim}, queries.options());
  dispatch("attend", queries, [&](auto type) {
    using T = decltype(type);
    const auto& loops = kernels<T>(level());
    // A few microseconds of work, at least, for each thread.
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

}  // namespace

TORCH_LIBRARY(depth_adaptive, m) {
  m.def("attend(Tensor queries, Tensor memory, Tensor places, Tensor? lists, int heads) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(depth_adaptive, CPU, m) { m.impl("attend", attend); }

}  // namespace depth_adaptive
