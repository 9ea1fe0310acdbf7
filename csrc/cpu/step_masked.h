// The fused step with masks: of a task's gradient counts what its mask has, and what no task's mask has keeps its bits.
// A loop of its own, so that steps without masks stay as they are.  Included by kernels_impl.h.

inline int64_t columns_of(All, int64_t lanes) { return lanes; }
inline int64_t columns_of(int64_t left, int64_t) { return left; }

// Stores the 16-bit numbers of x that are chosen.
template <class L, class Left>
inline void store_chosen(L* p, uint32_t bits, F16 x, Left left) {
  L whole[F16::lanes];
  store(whole, x);
  const int64_t n = columns_of(left, F16::lanes);
  for (int64_t i = 0; i < n; ++i) p[i].bits = bits >> i & 1 ? whole[i].bits : p[i].bits;
}

template <class R, class S, class G>
void step_masked_row(const Step& s, const SegmentMasks& masks, const Chunk& chunk, int64_t k, int64_t p, int64_t n) {
  using N = Number<S>;
  const StepConstants& constants = s.constants[k * s.segments + chunk.segment];
  const auto c = row_constants<N>(constants, [](double x) { return set1(S(x)); });
  const N gain = set1(S(constants.average)), zero = set1(S(0));
  const WeightedGradients<G> grads(s.grads, s.weights, s.tasks, k, chunk.segment, p);
  const int64_t at = k * s.row + p;
  S *theta = static_cast<S*>(s.theta) + at, *rows[R::moments + 1];
  S* ema = s.ema ? static_cast<S*>(s.ema) + at : nullptr;
  for (int j = 0; j < R::moments; ++j) rows[j] = static_cast<S*>(s.moments[j]) + at;
  for_groups<N>(n, [&](int64_t i, auto left) {
    const int64_t columns = columns_of(left, N::lanes);
    const uint32_t moved = masks.moved(p + i, columns), advanced = masks.hold ? moved : ~0u;
    const N g =
        grads.sum(i, left, [&](int64_t t, N value) { return chosen(masks.counted(t, p + i, columns), value, zero); });
    const N x = load(theta + i, left);
    N old[R::moments + 1], moments[R::moments + 1];
    for (int j = 0; j < R::moments; ++j) moments[j] = old[j] = load(rows[j] + i, left);
    const N u = update<R>(c, g, x, moments), sum = x + u;
    for (int j = 0; j < R::moments; ++j) store(rows[j] + i, chosen(advanced, moments[j], old[j]), left);
    store(theta + i, chosen(moved, sum, x), left);
    if (ema) {
      const N before = load(ema + i, left);
      store(ema + i, chosen(moved, averaged(gain, sum, before), before), left);
    }
    if constexpr (sizeof(S) == 4)
      if (s.low_precision) {
        const int64_t low = k * s.low_row + p + i;
        if (s.low_type == Type::bfloat16)
          store_chosen(static_cast<bfloat16*>(s.low_precision) + low, moved, sum, left);
        else
          store_chosen(static_cast<float16*>(s.low_precision) + low, moved, sum, left);
      }
  });
}

template <class R, class S, class G>
void step_masked_chunks(const Step& s, int64_t first, int64_t last) {
  for (int64_t c = first; c < last; ++c) {
    const Chunk& chunk = s.chunks[c];
    const SegmentMasks masks(s.masks, s.tasks, chunk.segment);
    for (int64_t k = 0; k < s.rows; ++k)
      if (s.constants[k * s.segments + chunk.segment].active != 0.)
        for (int64_t p = chunk.begin; p < chunk.end; p += s.tile)
          step_masked_row<R, S, G>(s, masks, chunk, k, p, least(s.tile, chunk.end - p));
  }
}
