#include "elements.h"

#include "../cpu/dispatch.h"

namespace mt2o::ops {

// Runs a kernel on the chunks of all threads.
template <class Arguments, class Kernel>
static void run(Arguments& s, Kernel kernel, const Tensor& grads, const Tensor& chunks, int64_t segments = -1) {
  const Chunks all = chunks_of(chunks, segments, grads.size(2));
  s.of.chunks = all.data;
  parallel_chunks(all, [&](int64_t first, int64_t last) { kernel(s, first, last); });
}

void track_(Tensor grads, Tensor memory, Tensor keep, Tensor fresh, Tensor finite, Tensor chunks, bool shown) {
  Track s = track_arguments(grads, memory, keep, fresh, finite, shown);
  run(s, kernels().track, grads, chunks);
}

void feed_(Tensor grads, Tensor last, Tensor memory, Tensor weights, Tensor now, Tensor before, Tensor finite,
           Tensor chunks, double beta) {
  Feed s = feed_arguments(grads, last, memory, weights, now, before, finite, beta);
  run(s, kernels().feed, grads, chunks);
}

// Chunks are added in their order, whoever made them: the number of threads cannot change a bit.
void excess_(Tensor out, Tensor partials, Tensor squares, Tensor grads, Tensor finite, Tensor chunks) {
  Excess s = excess_arguments(out, partials, squares, grads, finite, chunks.size(0));
  const int64_t segments = out.size(1);
  run(s, kernels().excess, grads, chunks, segments);
  double* sums = data<double>(out);
  std::fill(sums, sums + out.numel(), 0.);
  for (int64_t k = 0; k < s.of.rows; ++k)
    for (int64_t c = 0; c < s.num_chunks; ++c)
      for (int64_t t = 0; t < s.of.tasks; ++t)
        sums[(k * segments + s.of.chunks[c].segment) * s.of.tasks + t] +=
            s.partials[(k * s.num_chunks + c) * s.of.tasks + t];
}

void drop_signs_(Tensor grads, Tensor key, Tensor finite, Tensor chunks, int64_t stream, double leak) {
  DropSigns s = drop_signs_arguments(grads, key, finite, stream, leak);
  run(s, kernels().drop_signs, grads, chunks);
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) {
  m.impl("track_", TORCH_BOX(&mt2o::ops::track_));
  m.impl("feed_", TORCH_BOX(&mt2o::ops::feed_));
  m.impl("excess_", TORCH_BOX(&mt2o::ops::excess_));
  m.impl("drop_signs_", TORCH_BOX(&mt2o::ops::drop_signs_));
}
