#include "blend.cuh"

namespace mt2o::cuda {

template <class S, int Rows>
using CouplingOf = Coupling<S, Rows, Rows>;

// Up to `Rows` rows: V columns of all of them in registers.
template <class S, int Rows>
class BlendInRegisters {
 public:
  static constexpr int columns = wide<S>;  // of a thread

  __device__ __forceinline__ BlendInRegisters(const CouplingOf<S, Rows>& coupling, int rows)
      : coupling_(coupling), rows_(rows) {
#pragma unroll
    for (int b = 0; b < blocks; ++b) {
      used_[b] = 0;
      for (int j = 1; j < rows; ++j) used_[b] |= unsigned(coupling.used[b][j]) << j;
    }
    for (int k = 0; k < rows; ++k) identity_ |= unsigned(coupling.identity[k]) << k;
  }

  template <int V>
  __device__ __forceinline__ void blend(S* theta, int64_t row) const {
    Pack<S, V> x[Rows];
#pragma unroll
    for (int k = 0; k < Rows; ++k)
      if (k < rows_) x[k] = load<V>(theta + k * row);
    forget_memory();  // N is to stay where it is: taken out of the loop over columns, it would fill the registers
#pragma unroll
    for (int b = 0; b < blocks; ++b) {
      if (b * height >= rows_) break;
      Pack<S, V> sum[height] = {};
#pragma unroll
      for (int j = 1; j < Rows; ++j) {
        if (!(used_[b] >> j & 1)) continue;
        const Pack<S, height> factor = load<height>(coupling_.values[b][j]);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const S difference = x[j].of[i] - x[0].of[i];
#pragma unroll
          for (int r = 0; r < height; ++r) sum[r].of[i] = with_taken(sum[r].of[i], factor.of[r], difference);
        }
      }
#pragma unroll
      for (int r = 0; r < height; ++r) {
        const int k = b * height + r;
        if (k >= rows_ || (identity_ >> k & 1)) continue;
#pragma unroll
        for (int i = 0; i < V; ++i) sum[r].of[i] = x[k].of[i] + sum[r].of[i];
        store_whole(theta + k * row, sum[r]);
      }
    }
  }

 private:
  static constexpr int height = CouplingOf<S, Rows>::height, blocks = CouplingOf<S, Rows>::blocks;

  const CouplingOf<S, Rows>& coupling_;
  int rows_;
  unsigned used_[blocks], identity_ = 0;  // bits of columns and rows
};

template <class S, int Capacity>
__global__ void __launch_bounds__(blend_threads, Capacity > 8 ? 3 : 5)
    transfer_rows(Transfer s, DenseMix mix, Parts parts) {
  auto& coupling = block_shared<CouplingOf<S, Capacity>>();
  const Chunk part = parts[blockIdx.x];
  coupling.read(mix.values + (mix.matrices > 1 ? part.segment : 0) * s.rows * s.rows, s.rows, 0);
  const BlendInRegisters<S, Capacity> rows(coupling, int(s.rows));
  for_columns<decltype(rows)::columns>(part.begin, part.end, [&](auto width, int64_t p) {
    rows.template blend<decltype(width)::columns>(static_cast<S*>(s.theta) + p, s.row);
  });
}

// Any number of rows: one column of all of them in shared memory, N by blocks.
template <class S>
__global__ void __launch_bounds__(blend_threads, blend_blocks<S>) transfer_many(Transfer s, DenseMix mix, Parts parts) {
  using Shared = BlendShared<S, 0>;
  auto& shared = block_shared<Shared>();
  const int rows = int(s.rows), owners = Shared::owners(rows);
  const Chunk part = parts[blockIdx.x];
  const double* matrix = mix.values + (mix.matrices > 1 ? part.segment : 0) * s.rows * s.rows;
  for_owned_columns<1>(part, owners, [&](auto, int64_t p, bool mine) {
    S *staged = shared.staged + threadIdx.x, *theta = static_cast<S*>(s.theta) + p;
    if (mine) stage_rows<1>(theta, s.row, staged, owners, rows);
    for (int first = 0; first < rows; first += Shared::block) {
      shared.coupling.read(matrix, rows, first);
      if (!mine) continue;
      for (int r = 0; r < Shared::block && first + r < rows; ++r) {
        if (shared.coupling.identity[r]) continue;
        const Pack<S, 1> x = load<1>(staged + (first + r) * owners), none = {};
        const Pack<S, 1> sum = shared.coupling.blended(r, staged, owners, rows, none);
        theta[(first + r) * s.row] = x.of[0] + sum.of[0];
      }
    }
  });
}

Problem transfer(const Transfer& s, const DenseMix& mix, Extent extent, Stream stream) {
  if (extent.chunks == 0 || extent.columns == 0) return nullptr;
  const auto run = [&](auto type) {
    using S = typename decltype(type)::type;
    return with_capacity<S>(s.rows, [&](auto capacity) {
      constexpr int Capacity = decltype(capacity)::columns;
      const Units units = {1, 1, blend_threads, part_columns(sizeof(S))};
      if constexpr (Capacity > 0)
        return launch_parts(transfer_rows<S, Capacity>, units, s.chunks, extent, stream, s, mix);
      else
        return launch_parts(transfer_many<S>, units, s.chunks, extent, stream, s, mix);
    });
  };
  return s.type == Type::float64 ? run(Of<double>{}) : run(Of<float>{});
}

}  // namespace mt2o::cuda
