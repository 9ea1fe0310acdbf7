#include "../core/mask.h"
#include "update.cuh"

namespace mt2o::cuda {

constexpr int threads = 256;

// a in the columns whose bit is set, b in the others.
template <class S, int V>
__device__ __forceinline__ Pack<S, V> chosen(uint32_t bits, const Pack<S, V>& a, const Pack<S, V>& b) {
  Pack<S, V> x;
#pragma unroll
  for (int i = 0; i < V; ++i) x.of[i] = bits >> i & 1 ? a.of[i] : b.of[i];
  return x;
}

// What the rule R adds to x; of the moments, those in the columns that advance are stored, the others as they were.
template <class R, class S, int V>
__device__ __forceinline__ Pack<S, V> update_chosen(const Step& s, const RowConstants<S>& c, int64_t at,
                                                    uint32_t advanced, const Pack<S, V>& g, const Pack<S, V>& x,
                                                    Moments<S, V>& moments) {
  Pack<S, V> u;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    S own[R::moments + 1];
#pragma unroll
    for (int j = 0; j < R::moments; ++j) own[j] = moments.of[j].of[i];
    u.of[i] = mt2o::update<R>(c, g.of[i], x.of[i], own);
#pragma unroll
    for (int j = 0; j < R::moments; ++j)
      if (advanced >> i & 1) moments.of[j].of[i] = own[j];
  }
#pragma unroll
  for (int j = 0; j < R::moments; ++j) store_whole(static_cast<S*>(s.moments[j]) + at, moments.of[j]);
  return u;
}

// The 16-bit copies of the columns that move.
template <class L, class S, int V>
__device__ __forceinline__ void store_rounded(L* to, uint32_t moved, const Pack<S, V>& x) {
  Pack<L, V> low = *reinterpret_cast<const Pack<L, V>*>(to);
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (moved >> i & 1) low.of[i] = Rounded<L>::of(x.of[i]);
  *reinterpret_cast<Pack<L, V>*>(to) = low;
}

// A block takes one row of one part.
template <class S, class G, bool Apart>
__global__ void __launch_bounds__(threads, 2) step_masked_rows(Step s, Parts parts) {
  const int64_t k = blockIdx.y;
  const Chunk part = parts[blockIdx.x];
  const auto row = RowState<S>::of(s.constants[k * s.segments + part.segment]);
  if (!row.active) return;
  const SegmentMasks masks(s.masks, s.tasks, part.segment);
  const TaskGradients<G, Apart> grads(s.grads, s.weights, s.tasks, k, part.segment, part.begin);
  for_columns<wide<S>>(0, part.end - part.begin, [&](auto width, int64_t p) {
    constexpr int V = decltype(width)::columns;
    const int64_t column = part.begin + p, at = k * s.row + column;
    const Pack<S, V> x = load<V>(static_cast<const S*>(s.theta) + at);
    Moments<S, V> moments = Moments<S, V>::load(s, num_moments(s.rule), at);
    const uint32_t moved = masks.moved(column, V);
    const Pack<S, V> g = grads.template sum<V>(
        p, [&](int t, int c, S value) { return masks.counted(t, column, V) >> c & 1 ? value : S(0); });
    Pack<S, V> u;
    with_rule(s.rule, [&](auto rule) {
      u = update_chosen<decltype(rule)>(s, row.rule, at, masks.hold ? moved : ~0u, g, x, moments);
    });
    const Pack<S, V> now = chosen(moved, sum_of(x, u), x);
    store_whole(static_cast<S*>(s.theta) + at, now);
    if (s.ema) {
      S* ema = static_cast<S*>(s.ema) + at;
      Pack<S, V> before = load<V>(ema), average;
#pragma unroll
      for (int i = 0; i < V; ++i) average.of[i] = averaged(row.average, now.of[i], before.of[i]);
      store_whole(ema, chosen(moved, average, before));
    }
    if constexpr (sizeof(S) == 4)
      if (s.low_precision) {
        const int64_t low = k * s.low_row + column;
        if (s.low_type == Type::bfloat16)
          store_rounded(static_cast<bfloat16*>(s.low_precision) + low, moved, now);
        else
          store_rounded(static_cast<float16*>(s.low_precision) + low, moved, now);
      }
  });
}

Problem step_masked(const Step& s, Extent extent, Stream stream) {
  Problem problem = nullptr;
  with_type(s.grads.type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    using S = Scalar<G>;
    problem = with_place(s.grads, [&](auto apart) {
      constexpr auto kernel = step_masked_rows<S, G, decltype(apart)::value>;
      return launch_parts(kernel, {s.rows, 1, threads, part_columns(sizeof(S))}, s.chunks, extent, stream, s);
    });
  });
  return problem;
}

}  // namespace mt2o::cuda
