// Scores of the elements of masks: a group of columns at a time, the gradients of all tasks once for their mean and
// once more, from the cache, for the score of each.  Included by kernels_impl.h.

template <class Left>
inline void store_scores(float* to, F16 x, Left left) {
  store(to, x, left);
}
template <class Left>
inline void store_scores(float* to, D8 x, Left left) {
  double wide[D8::lanes];
  store(wide, x);
  const int64_t n = columns_of(left, D8::lanes);
  for (int64_t i = 0; i < n; ++i) to[i] = float(wide[i]);
}

template <class G>
void harmony_chunk(const Harmony& s, const Chunk& chunk) {
  using N = Number<G>;
  using S = Scalar<G>;
  const G *values = static_cast<const G*>(s.values), *of[max_tasks];
  S factors[max_tasks];
  const SegmentMasks masks(s.masks, s.tasks, chunk.segment);
  const N zero = set1(S(0)), gamma = set1(S(s.gamma)), count = set1(S(s.tasks));
  for (int64_t p = chunk.begin; p < chunk.end; p += zero_columns) {
    const RowGradients<G> row(s.grads, 0, chunk.segment, p, lie_apart(s.grads));
    for (int64_t t = 0; t < s.tasks; ++t) {
      const G* there = row[t];
      of[t] = there ? there : reinterpret_cast<const G*>(zeros), factors[t] = S(s.factors[t]);
    }
    for_groups<N>(least(zero_columns, chunk.end - p), [&](int64_t i, auto left) {
      const int64_t columns = columns_of(left, N::lanes);
      const auto gradient = [&](int64_t t) { return load(of[t] + i, left) * set1(factors[t]); };
      N masked = zero, whole = zero;
      for (int64_t t = 0; t < s.tasks; ++t) {
        const N g = gradient(t);
        masked = masked + chosen(masks.counted(t, p + i, columns), g, zero), whole = whole + g;
      }
      const N mean = masked / count, outside = s.dense ? whole / count : mean;
      const N x = load(values + p + i, left), size = x * sign(x);
      for (int64_t t = 0; t < s.tasks; ++t) {
        const uint32_t counted = masks.counted(t, p + i, columns);
        const N g = gradient(t), own = chosen(counted, g, zero);
        const N inside = harmony_score(s.magnitude ? size : own * own, gamma, mean, own);
        const N beyond = agreement_score(outside, s.dense ? g : own);
        store_scores(s.scores + t * s.scores_row + p + i, chosen(masks.of(t, p + i, columns), inside, beyond), left);
      }
    });
  }
}

void harmony(const Harmony& s, int64_t first, int64_t last) {
  with_type(s.grads.type, [&](auto grads) {
    for (int64_t c = first; c < last; ++c) harmony_chunk<typename decltype(grads)::type>(s, s.chunks[c]);
  });
}
