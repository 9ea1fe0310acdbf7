#include "combined.cuh"

namespace mt2o::cuda {

constexpr int threads = 256;

// Columns [0, whole) by the threads of a block: Packs loads of sixteen bytes for each task at a time.
template <int Packs, class G, class O, bool Apart>
__device__ __forceinline__ void combine_columns(const TaskGradients<G, Apart>& grads, O* out, int64_t whole) {
  constexpr int V = wide<G>, stride = threads * V;
  for (int64_t p = int64_t(threadIdx.x) * V; p < whole; p += Packs * stride) {
    Pack<Scalar<G>, V> sum[Packs] = {};
    grads.sums(p, stride, whole, sum);
#pragma unroll
    for (int i = 0; i < Packs; ++i)
      if (i == 0 || p + i * stride < whole) store_whole(out + p + i * stride, sum[i]);
  }
}

// A block takes one row of one part.
template <class G, class O, bool Apart>
__global__ void __launch_bounds__(threads, 4) combine_rows(Combine s, Parts parts) {
  const int64_t k = blockIdx.y;
  const Chunk part = parts[blockIdx.x];
  const TaskGradients<G, Apart> grads(s.grads, s.weights, s.tasks, k, part.segment, part.begin);
  O* out = static_cast<O*>(s.out) + k * s.out_row + part.begin;
  const int64_t columns = part.end - part.begin, whole = columns / wide<G> * wide<G>,
                rest = whole + int64_t(threadIdx.x);
  if (s.tasks <= 2)
    combine_columns<2>(grads, out, whole);
  else
    combine_columns<1>(grads, out, whole);
  if (rest < columns) store(out + rest, grads.template sum<1>(rest));
}

Problem combine(const Combine& s, Extent extent, Stream stream) {
  if (extent.chunks == 0 || extent.columns == 0 || s.rows == 0) return nullptr;
  Problem problem = nullptr;
  with_type(s.grads.type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    problem = with_place(s.grads, [&](auto apart) {
      constexpr bool Apart = decltype(apart)::value;
      const auto kernel = s.out_type == s.grads.type ? combine_rows<G, G, Apart> : combine_rows<G, Scalar<G>, Apart>;
      return launch_parts(kernel, {s.rows, 1, threads, part_columns(sizeof(G))}, s.chunks, extent, stream, s);
    });
  });
  return problem;
}

}  // namespace mt2o::cuda
