#include "cuda.h"
#include "gram.h"

namespace mt2o::ops {

static void gram_cuda_(Tensor out, Tensor partials, Tensor rows, MaybeTensor others, Tensor chunks,
                       MaybeTensor addresses, bool centre, bool diagonal) {
  const CurrentDevice device(rows, "rows");
  device.check(out, "out"), device.check(partials, "partials"), device.check(others, "others");
  device.check(chunks, "chunks"), device.check(addresses, "addresses");
  Gram s = gram_arguments(out, partials, rows, others, addresses, chunks.size(0), centre, diagonal);
  s.chunks = chunk_table(chunks).data;
  check_launched(cuda::gram(s, data<double>(out), out.size(1), device.stream()), "gram_");
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(MT2O_LIBRARY, MT2O_DEVICE, m) { m.impl("gram_", TORCH_BOX(&mt2o::ops::gram_cuda_)); }
