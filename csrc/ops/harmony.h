// The arguments of `harmony_` and `exchange_`, checked.
#pragma once
#include "gradients.h"
#include "mask.h"

namespace mt2o::ops {

inline Harmony harmony_arguments(const Tensor& scores, const Tensor& grads, const Tensor& values, const Tensor& factors,
                                 const Tensor& masks, const MaybeTensor& whole, const MaybeTensor& addresses) {
  Harmony s = {};
  s.grads = gradients_of(grads, "grads", addresses);
  STD_TORCH_CHECK(grads.size(0) == 1, "mt2o_ext: grads must be [1, T, P], not of ", grads.size(0), " rows");
  s.tasks = grads.size(1);
  STD_TORCH_CHECK(s.tasks >= 1 && s.tasks <= max_tasks, "mt2o_ext: 1 to ", max_tasks, " tasks, not ", s.tasks);
  check_rows(values, "values", 2), check_rows(scores, "scores", 2);
  STD_TORCH_CHECK(type_of(values, "values") == s.grads.type && values.size(0) == 1 && values.size(1) == grads.size(2),
                  "mt2o_ext: values must be [1, P] of the dtype of grads");
  STD_TORCH_CHECK(
      type_of(scores, "scores") == Type::float32 && scores.size(0) == s.tasks && scores.size(1) == grads.size(2),
      "mt2o_ext: scores must be float32 [T, P] where grads are [1, T, P]");
  check_table(factors, "factors", ScalarType::Double, {s.tasks});
  s.masks = masks_of(masks, whole, s.tasks, grads.size(2), segments_of(addresses));
  s.values = values.const_data_ptr(), s.factors = const_data<double>(factors);
  s.scores = data<float>(scores), s.scores_row = scores.stride(0);
  return s;
}

inline Exchange exchange_arguments(const Tensor& masks, const Tensor& counts, const Tensor& state, const Tensor& scores,
                                   const Tensor& chunks, int64_t amount) {
  check_rows(scores, "scores", 2);
  STD_TORCH_CHECK(type_of(scores, "scores") == Type::float32 && scores.size(1) <= int64_t(UINT32_MAX),
                  "mt2o_ext: scores must be float32 [T, P], P below 2^32");
  STD_TORCH_CHECK(amount >= 0, "mt2o_ext: amount must not be negative, but is ", amount);
  Exchange s = {};
  s.tasks = scores.size(0), s.num_chunks = chunks.size(0), s.amount = amount;
  masks_of(masks, {}, s.tasks, scores.size(1), -1);
  check_table(counts, "counts", ScalarType::Int, {s.tasks, s.num_chunks, exchange_bins});
  check_table(state, "state", ScalarType::Long, {s.tasks, exchange_state});
  s.masks = data<uint8_t>(masks), s.masks_row = masks.stride(0);
  s.scores = const_data<float>(scores), s.scores_row = scores.stride(0);
  s.counts = data<int32_t>(counts), s.state = reinterpret_cast<uint64_t*>(data<int64_t>(state));
  return s;
}

}  // namespace mt2o::ops
