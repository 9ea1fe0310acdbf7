#include "gram.h"

#include "../cpu/dispatch.h"

namespace mt2o::ops {

// Chunks are added in their order, whoever made them: the number of threads cannot change a bit.
static void add_chunks(const Gram& s, const Chunks& chunks, int64_t segments, double* out) {
  const int64_t size = s.diagonal ? s.rows : s.rows * s.rows, sums = gram_sums(s);
  std::fill(out, out + s.batch * segments * size, 0.);
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t c = 0; c < chunks.count; ++c) {
      double* gram = out + (b * segments + chunks.data[c].segment) * size;
      const double* partial = s.partials + (b * s.num_chunks + c) * sums;
      if (s.diagonal || s.cross) {
        for (int64_t q = 0; q < sums; ++q) gram[q] += partial[q];
        continue;
      }
      for (int64_t i = 0; i < s.rows; ++i)
        for (int64_t j = 0; j <= i; ++j) gram[i * s.rows + j] += partial[gram_pair(i, j)];
    }
  if (s.diagonal || s.cross) return;
  for (double* gram = out; gram < out + s.batch * segments * size; gram += size)
    for (int64_t i = 0; i < s.rows; ++i)
      for (int64_t j = 0; j < i; ++j) gram[j * s.rows + i] = gram[i * s.rows + j];
}

void gram_(Tensor out, Tensor partials, Tensor rows, MaybeTensor others, Tensor chunks, MaybeTensor addresses,
           bool centre, bool diagonal) {
  const Kernels& level = kernels();
  Gram s = gram_arguments(out, partials, rows, others, addresses, chunks.size(0), centre, diagonal);
  check_addresses(s.values, addresses);
  const int64_t segments = out.size(1);
  const Chunks all = chunks_of(chunks, segments, rows.size(2));
  s.chunks = all.data;
  parallel_chunks(all, [&](int64_t first, int64_t last) { level.gram(s, first, last); });
  add_chunks(s, all, segments, data<double>(out));
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) { m.impl("gram_", TORCH_BOX(&mt2o::ops::gram_)); }
