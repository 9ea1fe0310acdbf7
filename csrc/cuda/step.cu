#include "blend.cuh"
#include "update.cuh"

namespace mt2o::cuda {

constexpr int threads = 256;

// First in its own launch: a thread for each row and segment counts its step and works out its constants, in float64.
__global__ void __launch_bounds__(threads) advance_counters(StepCounters s) {
  const int64_t first = int64_t(blockIdx.x) * threads + threadIdx.x, stride = int64_t(gridDim.x) * threads;
  for (int64_t at = first; at < s.rows * s.segments; at += stride) advance_counter(s, at / s.segments, at % s.segments);
}

// Without a mix: a block takes one row of one part at a time.
template <class S, class G, bool Apart>
__global__ void __launch_bounds__(threads, sizeof(S) == 4 ? 3 : 2) step_rows(Step s, Parts parts) {
  for (int64_t unit = blockIdx.x; unit < parts.count * s.rows; unit += gridDim.x) {
    const int64_t k = unit % s.rows;
    const Chunk part = parts[unit / s.rows];
    const auto row = RowState<S>::of(s.constants[k * s.segments + part.segment]);
    if (!row.active) continue;
    for_columns<wide<S>>(part.begin, part.end, [&](auto width, int64_t p) {
      const auto x = load<decltype(width)::columns>(static_cast<const S*>(s.theta) + k * s.row + p);
      write(s, row.average, k, p,
            sum_of(x, update<decltype(width)::columns, G, Apart>(s, row.rule, k, part.segment, p, x)));
    });
  }
}

template <class S, int Capacity>
struct StepShared {
  BlendShared<S, Capacity> blend;
  RowState<S> rows[Capacity > 0 ? Capacity : 1];

  // By all threads of the block, before a barrier.
  __device__ __forceinline__ void read_rows(const StepConstants* constants, int64_t segments, int count) {
    if (Capacity > 0 && int(threadIdx.x) < count)
      rows[threadIdx.x] = RowState<S>::of(constants[threadIdx.x * segments]);
  }
  __device__ __forceinline__ RowState<S> row(const StepConstants* constants, int64_t segments, int k) const {
    return Capacity > 0 ? rows[k] : RowState<S>::of(constants[k * segments]);
  }
};

// With a mix.  Consensus: old parameters are staged, then row after row is updated, blended and written.
// Adapt-then-combine: updated parameters are staged, then row after row is blended and written.
template <class S, class G, bool Apart, int Capacity>
__global__ void __launch_bounds__(blend_threads, blend_blocks<S>) step_and_blend(Step s, DenseMix mix, Parts parts) {
  using Blend = BlendShared<S, Capacity>;
  auto& shared = block_shared<StepShared<S, Capacity>>();
  auto& coupling = shared.blend.coupling;
  const int rows = int(s.rows), owners = Blend::owners(rows);
  const bool consensus = s.order == Order::consensus;
  for (int64_t unit = blockIdx.x; unit < parts.count; unit += gridDim.x) {
    const Chunk part = parts[unit];
    const StepConstants* constants = s.constants + part.segment;
    const bool transfer = constants->transfer != 0.;
    const double* matrix = transfer ? mix.values + (mix.matrices > 1 ? part.segment : 0) * s.rows * s.rows : nullptr;
    if (Blend::whole) {
      __syncthreads();  // nobody reads the constants of before
      shared.read_rows(constants, s.segments, rows);
      coupling.read(matrix, rows, 0);
    }
    for_owned_columns<Blend::columns>(part, owners, [&](auto width, int64_t p, bool mine) {
      constexpr int V = decltype(width)::columns;
      const int stride = owners * Blend::columns;  // a thread keeps its place, however many columns it has
      S *staged = shared.blend.staged + threadIdx.x * Blend::columns, *theta = static_cast<S*>(s.theta) + p;
      if (mine)
#pragma unroll 1
        for (int k = 0; k < rows; ++k) {
          Pack<S, V> x = load<V>(theta + k * s.row);
          if (!consensus) {
            const auto row = shared.row(constants, s.segments, k);
            if (row.active) x = sum_of(x, update<V, G, Apart>(s, row.rule, k, part.segment, p, x));
          }
          store(staged + k * stride, x);
        }
      for (int first = 0; first < rows; first += Blend::block) {
        if (!Blend::whole) coupling.read(matrix, rows, first);
        if (!mine) continue;
#pragma unroll 1
        for (int r = 0; r < Blend::block && first + r < rows; ++r) {
          const int k = first + r;
          const auto row = shared.row(constants, s.segments, k);
          if (!row.active) continue;  // not written; others may have taken from it
          Pack<S, V> x = load<V>(staged + k * stride), u = {};
          if (consensus) u = update<V, G, Apart>(s, row.rule, k, part.segment, p, x);
          if (!coupling.identity[r])
            x = sum_of(x, coupling.blended(r, staged, stride, rows, u));
          else if (consensus)
            x = sum_of(x, u);
          write(s, row.average, k, p, x);
        }
      }
    });
  }
}

Problem step(const Step& s, const StepCounters& counters, const DenseMix& mix, Extent extent, Stream stream) {
  if (s.rows * s.segments == 0) return nullptr;
  const int64_t blocks = (s.rows * s.segments + threads - 1) / threads;
  if (const Problem problem = launch_units(advance_counters, blocks, threads, stream, counters)) return problem;
  if (extent.chunks == 0 || extent.columns == 0) return nullptr;
  const Parts parts = parts_of(s.chunks, extent);
  Problem problem = nullptr;
  with_type(s.grads.type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    using S = Scalar<G>;
    problem = with_place(s.grads, [&](auto apart) {
      constexpr bool Apart = decltype(apart)::value;
      if (mix.matrices == 0)
        return launch_units(step_rows<S, G, Apart>, parts.count * s.rows, threads, stream, s, parts);
      return with_capacity<S>(s.rows, [&](auto capacity) {
        constexpr auto kernel = step_and_blend<S, G, Apart, decltype(capacity)::columns>;
        return launch_units(kernel, parts.count, blend_threads, stream, s, mix, parts);
      });
    });
  });
  return problem;
}

}  // namespace mt2o::cuda
