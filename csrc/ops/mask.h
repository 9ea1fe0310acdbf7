// Tables of masks, and the arguments of `mask_`, checked.
#pragma once
#include "tensors.h"

namespace mt2o::ops {

// masks: uint8 [tasks, ceil(columns / 8)]; whole: bool [segments] or nothing.  segments: -1 for any number.
inline Masks masks_of(const Tensor& masks, const MaybeTensor& whole, int64_t tasks, int64_t columns, int64_t segments) {
  const int64_t bytes = (columns + 7) / 8;
  STD_TORCH_CHECK(masks.scalar_type() == ScalarType::Byte && masks.dim() == 2 && masks.size(0) == tasks &&
                      masks.size(1) == bytes && (bytes <= 1 || masks.stride(1) == 1),
                  "mt2o_ext: masks must be uint8 [", tasks, ", ", bytes, "], contiguous along the last dimension");
  Masks m = {};
  m.bits = const_data<uint8_t>(masks), m.row = masks.stride(0);
  if (whole.has_value()) {
    check_table(*whole, "whole", ScalarType::Bool, {segments < 0 ? whole->numel() : segments});
    m.whole = const_data<bool>(*whole);
  }
  return m;
}

inline Mask mask_arguments(const Tensor& out, const Tensor& values, const Tensor& masks, const MaybeTensor& whole) {
  check_rows(values, "values", 2), check_rows(out, "out", 2);
  check_same(out, values, "out", "values");
  STD_TORCH_CHECK(values.size(0) == 1, "mt2o_ext: values must be [1, P], not [", values.size(0), ", P]");
  Mask s = {};
  s.type = type_of(values, "values");
  s.masks = masks_of(masks, whole, 1, values.size(1), -1);
  s.values = values.const_data_ptr(), s.out = out.mutable_data_ptr();
  return s;
}

}  // namespace mt2o::ops
