#include "draw.h"

#include "library.h"

namespace mt2o::ops {

void draw_(Tensor out, Tensor key, std::vector<Tensor> ids, int64_t stream) {
  const Draws s = draws_of(out, key, ids, stream);
  for (int64_t i = 0; i < s.count; ++i) draw_number(s, i);
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) { m.impl("draw_", TORCH_BOX(&mt2o::ops::draw_)); }
