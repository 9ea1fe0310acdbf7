// The arguments of `draw`, checked.
#pragma once
#include "../core/draw.h"

#include <vector>

#include "tensors.h"

namespace mt2o::ops {

// ids: expanded to the shape of out.
inline Draws draws_of(const Tensor& out, const Tensor& key, const std::vector<Tensor>& ids, int64_t stream) {
  Draws s = {};
  s.as_bits = out.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(
      (s.as_bits || out.scalar_type() == ScalarType::Double) && out.is_contiguous() && out.dim() <= max_draw_dims,
      "mt2o_ext: out must be int64 or float64, contiguous, of up to ", max_draw_dims, " dimensions");
  STD_TORCH_CHECK(key.scalar_type() == ScalarType::Long && key.numel() == 1, "mt2o_ext: key must be one int64");
  STD_TORCH_CHECK(int64_t(ids.size()) <= max_draw_ids, "mt2o_ext: up to ", max_draw_ids, " ids, not ", ids.size());
  s.dims = out.dim(), s.count = out.numel(), s.num_ids = int64_t(ids.size());
  for (int64_t d = 0; d < s.dims; ++d) s.sizes[d] = out.size(d);
  for (int64_t i = 0; i < s.num_ids; ++i) {
    const Tensor& id = ids[size_t(i)];
    bool right = id.scalar_type() == ScalarType::Long && id.dim() == s.dims;
    for (int64_t d = 0; right && d < s.dims; ++d) {
      right = id.size(d) == s.sizes[d];
      s.strides[i][d] = id.stride(d);
    }
    STD_TORCH_CHECK(right, "mt2o_ext: ids must be int64, expanded to the shape of out");
    s.ids[i] = const_data<int64_t>(id);
  }
  s.key = const_data<int64_t>(key), s.stream = stream, s.numbers = out.mutable_data_ptr();
  return s;
}

}  // namespace mt2o::ops
