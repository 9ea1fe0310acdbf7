#include "columns.cuh"

namespace mt2o::cuda {

constexpr int threads = 256;

template <class G>
__device__ __forceinline__ uint32_t marked_nonfinite(const uint4& x) {
  uint32_t marked = mt2o::marked_nonfinite<G>(x.y) | mt2o::marked_nonfinite<G>(x.w);
  if (sizeof(G) < 8) marked |= mt2o::marked_nonfinite<G>(x.x) | mt2o::marked_nonfinite<G>(x.z);
  return marked;
}

// A block takes one row of one task of one part at a time.
template <class G, bool Apart>
__global__ void __launch_bounds__(threads) find_nonfinite(Finite s, Parts parts) {
  const int64_t rows = s.rows * s.tasks;
  for (int64_t unit = blockIdx.x; unit < parts.count * rows; unit += gridDim.x) {
    const int64_t k = unit % rows / s.tasks, t = unit % rows % s.tasks;
    const Chunk part = parts[unit / rows];
    const G* grads = RowGradients<G>(s.grads, k, part.segment, part.begin, Apart)[t];
    if (!grads) continue;
    grads = in_global_memory(grads);
    uint32_t marked = 0;
    for_columns<wide<G>>(0, part.end - part.begin, [&](auto width, int64_t p) {
      if constexpr (decltype(width)::columns == 1)
        marked |= is_finite(grads[p]) ? 0 : FiniteBits<G>::signs;
      else
        marked |= marked_nonfinite<G>(*reinterpret_cast<const uint4*>(grads + p));
    });
    if (marked & FiniteBits<G>::signs) store_same(s.found + k, 1.f);
  }
}

Problem finite(const Finite& s, Extent extent, Stream stream) {
  if (extent.chunks == 0 || extent.columns == 0 || s.rows * s.tasks == 0) return nullptr;
  const Parts parts = parts_of(s.chunks, extent);
  Problem problem = nullptr;
  with_type(s.grads.type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    problem = with_place(s.grads, [&](auto apart) {
      constexpr auto kernel = find_nonfinite<G, decltype(apart)::value>;
      return launch_units(kernel, parts.count * s.rows * s.tasks, threads, stream, s, parts);
    });
  });
  return problem;
}

}  // namespace mt2o::cuda
