#include "elements.h"

#include "cuda.h"

namespace mt2o::ops {

static void track_cuda_(Tensor grads, Tensor memory, Tensor keep, Tensor fresh, Tensor finite, Tensor chunks,
                        bool shown) {
  const CurrentDevice device(grads, "grads");
  device.check(memory, "memory"), device.check(keep, "keep"), device.check(fresh, "fresh");
  device.check(finite, "finite"), device.check(chunks, "chunks");
  Track s = track_arguments(grads, memory, keep, fresh, finite, shown);
  s.of.chunks = chunk_table(chunks).data;
  check_launched(cuda::track(s, extent_of(chunks, grads), device.stream()), "track_");
}

static void feed_cuda_(Tensor grads, Tensor last, Tensor memory, Tensor weights, Tensor now, Tensor before,
                       Tensor finite, Tensor chunks, double beta) {
  const CurrentDevice device(grads, "grads");
  device.check(last, "last"), device.check(memory, "memory"), device.check(weights, "weights");
  device.check(now, "now"), device.check(before, "before");
  device.check(finite, "finite"), device.check(chunks, "chunks");
  Feed s = feed_arguments(grads, last, memory, weights, now, before, finite, beta);
  s.of.chunks = chunk_table(chunks).data;
  check_launched(cuda::feed(s, extent_of(chunks, grads), device.stream()), "feed_");
}

static void excess_cuda_(Tensor out, Tensor partials, Tensor squares, Tensor grads, Tensor finite, Tensor chunks) {
  const CurrentDevice device(grads, "grads");
  device.check(out, "out"), device.check(partials, "partials"), device.check(squares, "squares");
  device.check(finite, "finite"), device.check(chunks, "chunks");
  Excess s = excess_arguments(out, partials, squares, grads, finite, chunks.size(0));
  s.of.chunks = chunk_table(chunks).data;
  check_launched(cuda::excess(s, data<double>(out), out.size(1), device.stream()), "excess_");
}

static void drop_signs_cuda_(Tensor grads, Tensor key, Tensor finite, Tensor chunks, int64_t stream, double leak) {
  const CurrentDevice device(grads, "grads");
  device.check(key, "key"), device.check(finite, "finite"), device.check(chunks, "chunks");
  DropSigns s = drop_signs_arguments(grads, key, finite, stream, leak);
  s.of.chunks = chunk_table(chunks).data;
  check_launched(cuda::drop_signs(s, extent_of(chunks, grads), device.stream()), "drop_signs_");
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(MT2O_LIBRARY, MT2O_DEVICE, m) {
  m.impl("track_", TORCH_BOX(&mt2o::ops::track_cuda_));
  m.impl("feed_", TORCH_BOX(&mt2o::ops::feed_cuda_));
  m.impl("excess_", TORCH_BOX(&mt2o::ops::excess_cuda_));
  m.impl("drop_signs_", TORCH_BOX(&mt2o::ops::drop_signs_cuda_));
}
