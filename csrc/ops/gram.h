// The arguments of `gram`, from tensors of any device.
#pragma once
#include "../core/gram.h"

#include "gradients.h"

namespace mt2o::ops {

// All but the chunks.
inline Gram gram_arguments(const Tensor& out, const Tensor& partials, const Tensor& rows, const MaybeTensor& others,
                           const MaybeTensor& addresses, int64_t num_chunks, bool centre, bool diagonal) {
  STD_TORCH_CHECK(out.dim() == (diagonal ? 3 : 4), "mt2o_ext: out must be [B, S, R, R], of a diagonal [B, S, R]");
  Gram s = {};
  s.values = gradients_of(rows, "rows", addresses, addresses.has_value() ? out.size(1) : -1);
  s.batch = rows.size(0), s.rows = rows.size(1), s.num_chunks = num_chunks;
  STD_TORCH_CHECK(s.rows >= 1 && s.rows <= max_rows, "mt2o_ext: 1 to ", max_rows, " rows, not ", s.rows);
  s.cross = others.has_value();
  if (s.cross) {
    check_rows(*others, "others", 3);
    STD_TORCH_CHECK(others->scalar_type() == rows.scalar_type() && others->size(0) == s.batch &&
                        others->size(1) == s.rows && others->size(2) == rows.size(2),
                    "mt2o_ext: others must have the dtype and the shape of rows");
    s.others = others->const_data_ptr();
    s.others_batch_stride = others->stride(0), s.others_row = others->stride(1);
  }
  s.centre = centre, s.diagonal = diagonal;
  STD_TORCH_CHECK(!s.values.addresses || (!s.cross && !s.centre),
                  "mt2o_ext: rows behind addresses are neither centred nor multiplied with others");
  if (diagonal)
    check_table(out, "out", ScalarType::Double, {s.batch, out.size(1), s.rows});
  else
    check_table(out, "out", ScalarType::Double, {s.batch, out.size(1), s.rows, s.rows});
  check_table(partials, "partials", ScalarType::Double, {s.batch, num_chunks, gram_sums(s)});
  s.partials = data<double>(partials);
  return s;
}

}  // namespace mt2o::ops
