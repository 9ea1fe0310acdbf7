#include "blend.cuh"
#include "update.cuh"

namespace mt2o::cuda {

constexpr int threads = 256;

// First in its own launch: a thread for each row and segment counts its step and works out its constants, in float64.
__global__ void __launch_bounds__(threads) advance_counters(StepCounters s) {
  const int64_t first = int64_t(blockIdx.x) * threads + threadIdx.x, stride = int64_t(gridDim.x) * threads;
  for (int64_t at = first; at < s.rows * s.segments; at += stride) advance_counter(s, at / s.segments, at % s.segments);
}

// Without a mix: a block takes one row of one part.
template <class S, class G, bool Apart>
__global__ void __launch_bounds__(threads, sizeof(S) == 4 ? 3 : 2) step_rows(Step s, Parts parts) {
  const int64_t k = blockIdx.y;
  const Chunk part = parts[blockIdx.x];
  const auto row = RowState<S>::of(s.constants[k * s.segments + part.segment]);
  if (!row.active) return;
  const TaskGradients<G, Apart> grads(s.grads, s.weights, s.tasks, k, part.segment, part.begin);
  for_columns<wide<S>>(0, part.end - part.begin, [&](auto width, int64_t p) {
    const int64_t at = k * s.row + part.begin + p;
    const auto x = load<decltype(width)::columns>(static_cast<const S*>(s.theta) + at);
    write(s, row.average, k, part.begin + p, sum_of(x, update(s, row.rule, grads, p, at, x)));
  });
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
__global__ void __launch_bounds__(blend_threads, 5) step_and_blend(Step s, DenseMix mix, Parts parts) {
  using Blend = BlendShared<S, Capacity>;
  auto& shared = block_shared<StepShared<S, Capacity>>();
  auto& coupling = shared.blend.coupling;
  const int rows = int(s.rows), owners = Blend::owners(rows);
  const bool consensus = s.order == Order::consensus;
  const Chunk part = parts[blockIdx.x];
  const StepConstants* constants = s.constants + part.segment;
  const bool transfer = constants->transfer != 0.;
  const double* matrix = transfer ? mix.values + (mix.matrices > 1 ? part.segment : 0) * s.rows * s.rows : nullptr;
  if (Blend::whole) {
    shared.read_rows(constants, s.segments, rows);
    coupling.read(matrix, rows, 0);
  }
  for_owned_columns<Blend::columns>(part, owners, [&](auto width, int64_t p, bool mine) {
    constexpr int V = decltype(width)::columns;
    const int stride = owners * Blend::columns;  // a thread keeps its place, however many columns it has
    S *staged = shared.blend.staged + threadIdx.x * Blend::columns, *theta = static_cast<S*>(s.theta) + p;
    const auto updated = [&](const RowState<S>& row, int k, const Pack<S, V>& x) {
      const TaskGradients<G, Apart, sizeof(S) == 4 ? 4 : 2> grads(s.grads, s.weights, s.tasks, k, part.segment, p);
      return update(s, row.rule, grads, 0, k * s.row + p, x);
    };
    if (mine && consensus) stage_rows<V>(theta, s.row, staged, stride, rows);
    if (mine && !consensus)
#pragma unroll 1
      for (int k = 0; k < rows; ++k) {
        Pack<S, V> x = load<V>(theta + k * s.row);
        const auto row = shared.row(constants, s.segments, k);
        if (row.active) x = sum_of(x, updated(row, k, x));
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
        if (consensus) u = updated(row, k, x);
        if (!coupling.identity[r])
          x = sum_of(x, coupling.blended(r, staged, stride, rows, u));
        else if (consensus)
          x = sum_of(x, u);
        write(s, row.average, k, p, x);
      }
    }
  });
}

Problem step(const Step& s, const StepCounters& counters, const DenseMix& mix, Extent extent, Stream stream) {
  if (s.rows * s.segments == 0) return nullptr;
  const int64_t blocks = (s.rows * s.segments + threads - 1) / threads;
  if (const Problem problem = launch_units(advance_counters, blocks, threads, stream, counters)) return problem;
  if (extent.chunks == 0 || extent.columns == 0) return nullptr;
  if (s.masks.bits) return step_masked(s, extent, stream);
  Problem problem = nullptr;
  with_type(s.grads.type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    using S = Scalar<G>;
    problem = with_place(s.grads, [&](auto apart) {
      constexpr bool Apart = decltype(apart)::value;
      constexpr int64_t least = part_columns(sizeof(S));
      if (mix.matrices == 0)
        return launch_parts(step_rows<S, G, Apart>, {s.rows, 1, threads, least}, s.chunks, extent, stream, s);
      return with_capacity<S>(s.rows, [&](auto capacity) {
        constexpr auto kernel = step_and_blend<S, G, Apart, decltype(capacity)::columns>;
        return launch_parts(kernel, {1, 1, blend_threads, least}, s.chunks, extent, stream, s, mix);
      });
    });
  });
  return problem;
}

}  // namespace mt2o::cuda
