#include "columns.cuh"

namespace mt2o::cuda {

constexpr int threads = 256;

// Has a bit of `signs` where one of the numbers in sixteen bytes is infinite or NaN.
template <class G>
__device__ __forceinline__ uint32_t marked_nonfinite(const uint4& x) {
  if constexpr (sizeof(G) == 8) {  // of halves with the exponents alone, nvcc would load these alone
    G values[2];
    __builtin_memcpy(values, &x, sizeof values);
    return is_finite(values[0]) && is_finite(values[1]) ? 0 : FiniteBits<G>::signs;
  } else {
    return mt2o::marked_nonfinite<G>(x.x) | mt2o::marked_nonfinite<G>(x.y) | mt2o::marked_nonfinite<G>(x.z) |
           mt2o::marked_nonfinite<G>(x.w);
  }
}

// A block takes one row of one task of one part.
template <class G, bool Apart>
__global__ void __launch_bounds__(threads) find_nonfinite(Finite s, Parts parts) {
  constexpr int V = wide<G>, at_once = 4;
  constexpr int64_t stride = int64_t(threads) * V;
  const int64_t k = blockIdx.y;
  const Chunk part = parts[blockIdx.x];
  const G* grads = RowGradients<G>(s.grads, k, part.segment, part.begin, Apart)[blockIdx.z];
  if (!grads) return;
  grads = in_global_memory(grads);
  const int64_t columns = part.end - part.begin, whole = columns / V * V, rest = whole + int64_t(threadIdx.x);
  uint32_t marked = 0;
#pragma unroll 1
  for (int64_t p = int64_t(threadIdx.x) * V; p < whole; p += at_once * stride) {
    uint4 x[at_once] = {};
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      if (p + i * stride < whole) x[i] = *reinterpret_cast<const uint4*>(grads + p + i * stride);
#pragma unroll
    for (int i = 0; i < at_once; ++i) marked |= marked_nonfinite<G>(x[i]);
  }
  if (rest < columns && !is_finite(grads[rest])) marked = FiniteBits<G>::signs;
  if (marked & FiniteBits<G>::signs) store_same(s.found + k, 1.f);
}

Problem finite(const Finite& s, Extent extent, Stream stream) {
  if (extent.chunks == 0 || extent.columns == 0 || s.rows * s.tasks == 0) return nullptr;
  Problem problem = nullptr;
  with_type(s.grads.type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    problem = with_place(s.grads, [&](auto apart) {
      constexpr auto kernel = find_nonfinite<G, decltype(apart)::value>;
      return launch_parts(kernel, {s.rows, s.tasks, threads, part_columns(sizeof(G))}, s.chunks, extent, stream, s);
    });
  });
  return problem;
}

}  // namespace mt2o::cuda
