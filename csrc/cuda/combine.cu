#include "combined.cuh"

namespace mt2o::cuda {

constexpr int threads = 256;

// A block takes one row of one part at a time.
template <class G, class O, bool Apart>
__global__ void __launch_bounds__(threads, 4) combine_rows(Combine s, Parts parts) {
  for (int64_t unit = blockIdx.x; unit < parts.count * s.rows; unit += gridDim.x) {
    const int64_t k = unit % s.rows;
    const Chunk part = parts[unit / s.rows];
    O* out = static_cast<O*>(s.out) + k * s.out_row;
    for_columns<wide<G>>(part.begin, part.end, [&](auto width, int64_t p) {
      constexpr int columns = decltype(width)::columns;
      store_whole(out + p, combined<columns, G, Apart>(s.grads, s.weights, s.tasks, k, part.segment, p));
    });
  }
}

Problem combine(const Combine& s, Extent extent, Stream stream) {
  if (extent.chunks == 0 || extent.columns == 0 || s.rows == 0) return nullptr;
  const Parts parts = parts_of(s.chunks, extent);
  Problem problem = nullptr;
  with_type(s.grads.type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    problem = with_place(s.grads, [&](auto apart) {
      constexpr bool Apart = decltype(apart)::value;
      const auto kernel = s.out_type == s.grads.type ? combine_rows<G, G, Apart> : combine_rows<G, Scalar<G>, Apart>;
      return launch_units(kernel, parts.count * s.rows, threads, stream, s, parts);
    });
  });
  return problem;
}

}  // namespace mt2o::cuda
