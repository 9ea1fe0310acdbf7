#include "blend.cuh"

namespace mt2o::cuda {

template <class S, int Capacity>
__global__ void __launch_bounds__(blend_threads, blend_blocks<S>) transfer_rows(Transfer s, DenseMix mix, Parts parts) {
  using Shared = BlendShared<S, Capacity>;
  auto& shared = block_shared<Shared>();
  const int rows = int(s.rows), owners = Shared::owners(rows);
  const Chunk part = parts[blockIdx.x];
  const double* matrix = mix.values + (mix.matrices > 1 ? part.segment : 0) * s.rows * s.rows;
  if (Shared::whole) shared.coupling.read(matrix, rows, 0);
  for_owned_columns<Shared::columns>(part, owners, [&](auto width, int64_t p, bool mine) {
    constexpr int V = decltype(width)::columns;
    const int stride = owners * Shared::columns;  // a thread keeps its place, however many columns it has
    S *staged = shared.staged + threadIdx.x * Shared::columns, *theta = static_cast<S*>(s.theta) + p;
    if (mine) stage_rows<V>(theta, s.row, staged, stride, rows);
    for (int first = 0; first < rows; first += Shared::block) {
      if (!Shared::whole) shared.coupling.read(matrix, rows, first);
      if (!mine) continue;
      for (int r = 0; r < Shared::block && first + r < rows; ++r) {
        if (shared.coupling.identity[r]) continue;
        Pack<S, V> x = load<V>(staged + (first + r) * stride), none = {};
        const Pack<S, V> sum = shared.coupling.blended(r, staged, stride, rows, none);
#pragma unroll
        for (int i = 0; i < V; ++i) x.of[i] = x.of[i] + sum.of[i];
        store(theta + (first + r) * s.row, x);
      }
    }
  });
}

Problem transfer(const Transfer& s, const DenseMix& mix, Extent extent, Stream stream) {
  if (extent.chunks == 0 || extent.columns == 0) return nullptr;
  const auto run = [&](auto type) {
    using S = typename decltype(type)::type;
    return with_capacity<S>(s.rows, [&](auto capacity) {
      return launch_parts(transfer_rows<S, decltype(capacity)::columns>, {1, 1, blend_threads, part_columns(sizeof(S))},
                          s.chunks, extent, stream, s, mix);
    });
  };
  return s.type == Type::float64 ? run(Of<double>{}) : run(Of<float>{});
}

}  // namespace mt2o::cuda
