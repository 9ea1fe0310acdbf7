// found[k] = 1 where a gradient of row k is infinite or NaN: the only numbers whose product with zero is not zero.
// Included by kernels_impl.h.

template <class G>
bool all_finite(const G* values, int64_t n) {
  using N = Number<G>;
  const N zero = set1(Scalar<G>(0));
  N even = zero, odd = zero;  // two chains, to hide the latency of fma
  int64_t i = 0;
  for (; i + 2 * N::lanes <= n; i += 2 * N::lanes) {
    even = fma(load(values + i), zero, even);
    odd = fma(load(values + i + N::lanes), zero, odd);
  }
  for_groups<N>(n - i, [&](int64_t rest, auto left) { even = fma(load(values + i + rest, left), zero, even); });
  return total(even + odd) == 0.;
}

void finite(const Finite& s, int64_t first, int64_t last) {
  with_type(s.grads.type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    for (int64_t c = first; c < last; ++c)
      for (int64_t k = 0; k < s.rows; ++k)
        for (int64_t t = 0; t < s.tasks; ++t) {
          const Chunk& chunk = s.chunks[c];
          const G* values = RowGradients<G>(s.grads, k, chunk.segment, chunk.begin, lie_apart(s.grads))[t];
          if (!values || all_finite(values, chunk.end - chunk.begin)) continue;
          const float one = 1.f;  // several threads may say so at once
          __atomic_store(s.found + k, &one, __ATOMIC_RELAXED);
        }
  });
}
