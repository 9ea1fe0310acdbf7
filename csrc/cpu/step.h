// The fused step: for a tile of columns, row after row, combine the task gradients, advance the moments and write the
// new parameter; or, where a mix is due, put old value and update to scratch and blend all rows at the end.  Every
// number is read once and written once.  Long runs along a row matter more than the first-level cache: a tile of 2048
// columns was best. Included by kernels_impl.h.

// Advances the moments of one row over a tile; sink(i, left, x, u) takes the old value and the update.
template <class R, class S, class G, class Sink>
void advance_row(const Step& s, const StepConstants& constants, int64_t k, int64_t segment, int64_t p, int64_t n,
                 Sink sink) {
  using N = Number<S>;
  const auto c = row_constants<N>(constants, [](double x) { return set1(S(x)); });
  const WeightedGradients<G> grads(s.grads, s.weights, s.tasks, k, segment, p);
  const int64_t at = k * s.row + p;
  const S* theta = static_cast<const S*>(s.theta) + at;
  S* rows[R::moments + 1];  // one more than there are: no array is empty
  for (int j = 0; j < R::moments; ++j) rows[j] = static_cast<S*>(s.moments[j]) + at;
  for_groups<N>(n, [&](int64_t i, auto left) {
    const N g = grads.sum(i, left), x = load(theta + i, left);
    N moments[R::moments + 1];
    for (int j = 0; j < R::moments; ++j) moments[j] = load(rows[j] + i, left);
    const N u = update<R>(c, g, x, moments);
    for (int j = 0; j < R::moments; ++j) store(rows[j] + i, moments[j], left);
    sink(i, left, x, u);
  });
}

// What follows from the new parameters, while they are in the cache: their running average, their rounded copy.
template <class S>
void average_row(const Step& s, const StepConstants& c, int64_t k, int64_t p, int64_t n) {
  const S* theta = static_cast<const S*>(s.theta) + k * s.row + p;
  S* ema = static_cast<S*>(s.ema) + k * s.row + p;
  const auto gain = set1(S(c.average));
  for_groups<Number<S>>(n, [&](int64_t i, auto left) {
    const auto old = load(ema + i, left);
    store(ema + i, averaged(gain, load(theta + i, left), old), left);
  });
}
template <class L>
void round_row(const Step& s, int64_t k, int64_t p, int64_t n) {
  const float* theta = static_cast<const float*>(s.theta) + k * s.row + p;
  L* low = static_cast<L*>(s.low_precision) + k * s.low_row + p;
  for_groups<F16>(n, [&](int64_t i, auto left) { store(low + i, load(theta + i, left), left); });
}

// The next tile of a row, which begins at this column: theta, its moments and the gradients.
template <class S, class G>
struct NextTile {
  const Step& s;
  int64_t segment, column;
  bool there;  // nothing behind the end of the chunk

  void operator()(int64_t k, int64_t i) const {
    if (!there) return;
    const void* const all[] = {s.theta, s.moments[0], s.moments[1]};
    for (const void* rows : all)
      if (rows) __builtin_prefetch(static_cast<const S*>(rows) + k * s.row + column + i, 1, 2);
    const RowGradients<G> grads(s.grads, k, segment, column + i, lie_apart(s.grads));
    for (int64_t t = 0; t < s.tasks; ++t)
      if (const G* values = grads[t]) __builtin_prefetch(values, 0, 2);
  }
};

// One chunk of one segment.
template <class R, class S, class G>
struct ChunkStep {
  const Step& s;
  const Chunk& chunk;
  const StepConstants& constants(int64_t k) const { return s.constants[k * s.segments + chunk.segment]; }
  bool inactive(int64_t k) const { return constants(k).active == 0.; }

  void update_rows(int64_t p, int64_t n) const {
    for (int64_t k = 0; k < s.rows; ++k) {
      if (inactive(k)) continue;
      S* theta = static_cast<S*>(s.theta) + k * s.row + p;
      advance_row<R, S, G>(s, constants(k), k, chunk.segment, p, n,
                           [&](int64_t i, auto left, auto x, auto u) { store(theta + i, x + u, left); });
    }
  }

  template <Base base>
  void update_and_blend(int64_t p, int64_t n, const Mix<S>& mix, S* staged, S* added, int64_t stride) const {
    S* theta = static_cast<S*>(s.theta) + p;
    bool kept[max_rows];
    for (int64_t k = 0; k < s.rows; ++k) {
      S* row = theta + k * s.row;
      kept[k] = inactive(k) || mix.identity[k];
      if (inactive(k)) {  // others may still take from it
        for_groups<Number<S>>(n, [&](int64_t i, auto left) { stage(staged, stride, k, i, load(row + i, left)); });
        continue;
      }
      advance_row<R, S, G>(s, constants(k), k, chunk.segment, p, n, [&](int64_t i, auto left, auto x, auto u) {
        const auto sum = x + u;
        if (mix.identity[k])
          store(row + i, sum, left);
        else
          store(added + k * stride + i, base == Base::updated ? u : sum);
        stage(staged, stride, k, i, base == Base::updated ? x : sum);
      });
    }
    const NextTile<S, G> next = {s, chunk.segment, p + n, p + 2 * n <= chunk.end};
    blend<base>(BlendTile<S, NextTile<S, G>>{theta, s.row, s.rows, n, staged, added, stride, kept, next}, mix);
  }

  void finish_rows(int64_t p, int64_t n) const {
    for (int64_t k = 0; k < s.rows; ++k) {
      if (inactive(k)) continue;
      if (s.ema) average_row<S>(s, constants(k), k, p, n);
      if constexpr (sizeof(S) == 4)
        if (s.low_precision)
          s.low_type == Type::bfloat16 ? round_row<bfloat16>(s, k, p, n) : round_row<float16>(s, k, p, n);
    }
  }

  // Columns of a tile to blend: long runs along a row, but this tile, its scratch and the next one, which is fetched
  // ahead, share the second-level cache.  16,384 elements of theta were best for K = 5, 8 and 16.
  int64_t blended_tile() const {
    const int64_t wanted = (16384 / s.rows + 15) / 16 * 16;
    return fitting_tile(least(wanted > 512 ? wanted : 512, 2 * s.tile), 2 * s.rows, sizeof(S));
  }

  void run(S* scratch) const {
    const bool mixed = s.mix.matrices && constants(0).transfer != 0.;
    const int64_t tile = mixed ? blended_tile() : s.tile, stride = scratch_stride(tile);
    for (int64_t p = chunk.begin; p < chunk.end; p += tile) {
      const int64_t n = least(tile, chunk.end - p);
      if (!mixed) {
        update_rows(p, n);
      } else {
        const Mix<S> mix(s.mix, s.rows, chunk.segment);
        S* added = scratch + s.rows * stride;
        s.order == Order::consensus ? update_and_blend<Base::updated>(p, n, mix, scratch, added, stride)
                                    : update_and_blend<Base::added_only>(p, n, mix, scratch, added, stride);
      }
      finish_rows(p, n);
    }
  }
};

template <class R, class S, class G>
void step_chunks(const Step& s, int64_t first, int64_t last) {
  alignas(64) S scratch[blend_scratch / sizeof(S)];
  for (int64_t c = first; c < last; ++c) ChunkStep<R, S, G>{s, s.chunks[c]}.run(scratch);
}
void step(const Step& s, int64_t first, int64_t last) {
  with_type(s.grads.type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    with_rule(s.rule, [&](auto rule) {
      if (s.masks.bits)
        step_masked_chunks<decltype(rule), Scalar<G>, G>(s, first, last);
      else
        step_chunks<decltype(rule), Scalar<G>, G>(s, first, last);
    });
  });
}
