// Task priority in two sweeps: products with the owner's gradient, then the corrected sum.  Included by kernels_impl.h.
//
// Products are summed in double, lane by lane, over all columns of a chunk that one task owns.

// body(begin, n, key) for the pieces of a chunk: neighbouring runs of equal key(owner) are one piece.
template <class Key, class Body>
inline void for_pieces(const Priority& s, const Chunk& chunk, Key key, Body body) {
  const PriorityRecord& record = s.records[chunk.segment];
  const auto keyed = [&](int64_t p) {
    const OwnedRun run = owned_run(s, record, p);
    return OwnedRun{key(run.owner), least(run.end, chunk.end)};
  };
  int64_t begin = chunk.begin;
  while (begin < chunk.end) {
    OwnedRun piece = keyed(begin), next = piece;
    while (piece.end < chunk.end && (next = keyed(piece.end)).owner == piece.owner) piece.end = next.end;
    body(begin, piece.end - begin, piece.owner);
    begin = piece.end;
  }
}

struct WideProducts {  // products of floats are exact in double
  D8 lower = set1(0.), upper = set1(0.);
  void add(F16 a, F16 b) {
    lower = fma(lower_half(a), lower_half(b), lower);
    upper = fma(upper_half(a), upper_half(b), upper);
  }
  void add(D8 a, D8 b) { lower = fma(a, b, lower); }
  D8 lanes() const { return lower + upper; }
};

// <own, grads[j]> for T tasks, added to eight lanes each.
template <int T, class G>
void own_products(const G* own, const G* grads, int64_t task, int64_t n, D8* sums) {
  WideProducts products[T];
  for_groups<Number<G>>(n, [&](int64_t i, auto left) {
    const Number<G> x = load(own + i, left);
#pragma GCC unroll 3
    for (int t = 0; t < T; ++t) products[t].add(x, load(grads + t * task + i, left));
  });
  for (int t = 0; t < T; ++t) sums[t] = sums[t] + products[t].lanes();
}

template <class G>
void dots_of_chunk(const Priority& s, int64_t c) {
  D8 sums[max_owners * max_owners];
  for (int64_t q = 0; q < s.tasks * s.tasks; ++q) sums[q] = set1(0.);
  const G* grads = static_cast<const G*>(s.grads);
  for_pieces(s, s.chunks[c], [](int64_t owner) { return owner; }, [&](int64_t p, int64_t n, int64_t owner) {
    if (owner < 0) return;
    const G *own = grads + owner * s.grads_task + p, *first = grads + p;
    D8* of_owner = sums + owner * s.tasks;
    int64_t t = 0;
    for (; t + 3 <= s.tasks; t += 3) own_products<3>(own, first + t * s.grads_task, s.grads_task, n, of_owner + t);
    if (s.tasks - t == 2) own_products<2>(own, first + t * s.grads_task, s.grads_task, n, of_owner + t);
    if (s.tasks - t == 1) own_products<1>(own, first + t * s.grads_task, s.grads_task, n, of_owner + t);
  });
  for (int64_t q = 0; q < s.tasks * s.tasks; ++q) s.dots[c * s.tasks * s.tasks + q] = total(sums[q]);
}

// The plain sum is that of `combine` with weights of one, bit for bit.
template <int T, class G, class O>
void corrected_sum(const G* grads, int64_t task, int64_t tasks, int64_t n, const G* own, Scalar<G> factor, O* out) {
  using N = Number<G>;
  const int64_t count = T ? T : tasks;
  const N c = set1(factor);
  for_groups<N>(n, [&](int64_t i, auto left) {
    N sum = load(grads + i, left);
    for (int64_t t = 1; t < count; ++t) sum = sum + load(grads + t * task + i, left);
    if (own) sum = fma(c, load(own + i, left), sum);
    store(out + i, sum, left);
  });
}

template <int T, class G, class O>
void combine_chunk_of(const Priority& s, const Chunk& chunk) {
  const PriorityRecord& record = s.records[chunk.segment];
  const G* grads = static_cast<const G*>(s.grads);
  O* out = static_cast<O*>(s.out);
  const auto corrected_owner = [&](int64_t owner) { return correction(s, record, owner) != 0. ? owner : -1; };
  for_pieces(s, chunk, corrected_owner, [&](int64_t p, int64_t n, int64_t owner) {
    const G* own = owner < 0 ? nullptr : grads + owner * s.grads_task + p;
    corrected_sum<T>(grads + p, s.grads_task, s.tasks, n, own, Scalar<G>(correction(s, record, owner)), out + p);
  });
}

void priority_dots(const Priority& s, int64_t first, int64_t last) {
  with_type(s.grads_type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    for (int64_t c = first; c < last; ++c)
      if (s.records[s.chunks[c].segment].layer >= 0) dots_of_chunk<G>(s, c);
  });
}

template <class G, class O>
void priority_combine_as(const Priority& s, int64_t first, int64_t last) {
  // Backwards: what the first sweep read last is still in the cache.
  for (int64_t c = last; c-- > first;) switch (s.tasks) {
      case 2: combine_chunk_of<2, G, O>(s, s.chunks[c]); break;
      case 3: combine_chunk_of<3, G, O>(s, s.chunks[c]); break;
      default: combine_chunk_of<0, G, O>(s, s.chunks[c]);
    }
}
void priority_combine(const Priority& s, int64_t first, int64_t last) {
  with_type(s.grads_type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    s.out_type == s.grads_type ? priority_combine_as<G, G>(s, first, last)
                               : priority_combine_as<G, Scalar<G>>(s, first, last);
  });
}
