#include "../cpu/dispatch.h"
#include "tensors.h"

namespace mt2o::ops {

// Chunks are added in their order, whoever made them: the number of threads cannot change a bit.
static void add_chunks(const Gram& s, const Chunks& chunks, int64_t segments, double* out) {
  const int64_t rows = s.rows, pairs = rows * (rows + 1) / 2;
  std::fill(out, out + s.batch * segments * rows * rows, 0.);
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t c = 0; c < chunks.count; ++c) {
      double* gram = out + (b * segments + chunks.data[c].segment) * rows * rows;
      const double* partial = s.partials + (b * s.num_chunks + c) * pairs;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j <= i; ++j) {
          gram[i * rows + j] += *partial++;
          gram[j * rows + i] = gram[i * rows + j];
        }
    }
}

void gram_(Tensor out, Tensor partials, Tensor rows, Tensor chunks, bool centre) {
  const Kernels& level = kernels();
  check_rows(rows, "rows", 3);
  Gram s = {};
  s.batch = rows.size(0), s.rows = rows.size(1), s.num_chunks = chunks.size(0);
  STD_TORCH_CHECK(s.rows >= 1 && s.rows <= max_rows, "mt2o_ext: 1 to ", max_rows, " rows, not ", s.rows);
  STD_TORCH_CHECK(out.dim() == 4, "mt2o_ext: out must be [B, S, R, R]");
  const int64_t segments = out.size(1);
  check_table(out, "out", ScalarType::Double, {s.batch, segments, s.rows, s.rows});
  check_table(partials, "partials", ScalarType::Double, {s.batch, s.num_chunks, s.rows * (s.rows + 1) / 2});
  s.values = rows.const_data_ptr(), s.type = type_of(rows, "rows");
  s.batch_stride = rows.stride(0), s.row = rows.stride(1);
  s.centre = centre;
  s.partials = data<double>(partials);
  const Chunks all = chunks_of(chunks, segments, rows.size(2));
  s.chunks = all.data;
  parallel_chunks(all, [&](int64_t first, int64_t last) { level.gram(s, first, last); });
  add_chunks(s, all, segments, data<double>(out));
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) { m.impl("gram_", TORCH_BOX(&mt2o::ops::gram_)); }
