#include "../core/harmony.h"

#include "../core/mask.h"
#include "columns.cuh"

namespace mt2o::cuda {

constexpr int threads = 256;

// A thread has its columns of all tasks: their gradients once for the mean, and once more for the score of each.
template <class S, class G, bool Apart>
__global__ void __launch_bounds__(threads) score_columns(Harmony s, Parts parts) {
  const Chunk part = parts[blockIdx.x];
  const SegmentMasks masks(s.masks, s.tasks, part.segment);
  const RowGradients<G> row(s.grads, 0, part.segment, part.begin, Apart);
  const G* values = static_cast<const G*>(s.values);
  const S gamma = S(s.gamma), count = S(s.tasks);
  for_columns<wide<S>>(0, part.end - part.begin, [&](auto width, int64_t p) {
    constexpr int V = decltype(width)::columns;
    const int64_t column = part.begin + p;
    const auto gradient = [&](int64_t t) {
      const G* of = row[t];
      Pack<S, V> g = load_if_there<V>(of ? of + p : nullptr);
      const S factor = S(s.factors[t]);
#pragma unroll
      for (int i = 0; i < V; ++i) g.of[i] = g.of[i] * factor;
      return g;
    };
    Pack<S, V> masked = {}, whole = {};
#pragma unroll 1
    for (int64_t t = 0; t < s.tasks; ++t) {
      const Pack<S, V> g = gradient(t);
      const uint32_t counted = masks.counted(t, column, V);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        masked.of[i] = masked.of[i] + (counted >> i & 1 ? g.of[i] : S(0));
        whole.of[i] = whole.of[i] + g.of[i];
      }
    }
    const Pack<S, V> x = load<V>(values + column);
#pragma unroll 1
    for (int64_t t = 0; t < s.tasks; ++t) {
      const Pack<S, V> g = gradient(t);
      const uint32_t counted = masks.counted(t, column, V), has = masks.of(t, column, V);
      Pack<float, V> score;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const S mean = masked.of[i] / count, own = counted >> i & 1 ? g.of[i] : S(0);
        const S importance = s.magnitude ? x.of[i] * sign(x.of[i]) : own * own;
        const S inside = harmony_score(importance, gamma, mean, own);
        const S beyond = agreement_score(s.dense ? whole.of[i] / count : mean, s.dense ? g.of[i] : own);
        score.of[i] = float(has >> i & 1 ? inside : beyond);
      }
      store_whole(s.scores + t * s.scores_row + column, score);
    }
  });
}

Problem harmony(const Harmony& s, Extent extent, Stream stream) {
  if (extent.chunks == 0 || extent.columns == 0 || s.tasks == 0) return nullptr;
  Problem problem = nullptr;
  with_type(s.grads.type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    using S = Scalar<G>;
    problem = with_place(s.grads, [&](auto apart) {
      constexpr auto kernel = score_columns<S, G, decltype(apart)::value>;
      return launch_parts(kernel, {1, 1, threads, part_columns(sizeof(S))}, s.chunks, extent, stream, s);
    });
  });
  return problem;
}

}  // namespace mt2o::cuda
