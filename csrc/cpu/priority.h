// Task priority in two sweeps: products with the owner's gradient, then the corrected sum.  Included by kernels_impl.h.
//
// Products are summed in double, lane by lane, over all columns of a chunk that one task owns.

// body(begin, n, owner) for the pieces of a chunk: neighbouring channels of the same as(owner) are one piece.
template <class As, class Body>
inline void for_pieces(const Priority& s, const Chunk& chunk, As as, Body body) {
  const PriorityRecord& record = s.records[chunk.segment];
  ChannelRun run = run_at(record, chunk.begin);
  int64_t begin = chunk.begin, owner = as(owner_of(s, record, run.channel));
  while (run.end < chunk.end) {
    const ChannelRun next = run_after(record, run);
    const int64_t next_owner = as(owner_of(s, record, next.channel));
    if (next_owner != owner) {
      body(begin, run.end - begin, owner);
      begin = run.end, owner = next_owner;
    }
    run = next;
  }
  if (begin < chunk.end) body(begin, chunk.end - begin, owner);
}

constexpr int products_at_once = 4;  // of one row with others: their sums fit the registers of AVX2

struct WideProducts {  // products of floats are exact in double
  D8 sum = set1(0.);
  void add(F16 a, F16 b) {
    sum = fma(lower_half(a), lower_half(b), sum);
    sum = fma(upper_half(a), upper_half(b), sum);
  }
  void add(D8 a, D8 b) { sum = fma(a, b, sum); }
};

// <own, own> and <own, others[j]>, added to eight lanes each.  The same order of sums for any number of others.
template <int Others, class G>
void own_products(const G* own, const G* const* others, int64_t n, D8* own_sum, D8* const* sums) {
  WideProducts square, products[Others ? Others : 1];
  for_groups<Number<G>>(n, [&](int64_t i, auto left) {
    const Number<G> x = load(own + i, left);
    square.add(x, x);
#pragma GCC unroll 4
    for (int j = 0; j < Others; ++j) products[j].add(x, load(others[j] + i, left));
  });
  if (own_sum) *own_sum = *own_sum + square.sum;
  for (int j = 0; j < Others; ++j) *sums[j] = *sums[j] + products[j].sum;
}

template <class G>
void products_of_piece(const Priority& s, const G* grads, int64_t n, int64_t owner, D8* sums) {
  const G *own = grads + owner * s.grads_task, *others[products_at_once];
  D8 *own_sum = sums + owner, *to[products_at_once];
  int count = 0;
  const auto add = [&] {
    switch (count) {
      case 0: own_products<0>(own, others, n, own_sum, to); break;
      case 1: own_products<1>(own, others, n, own_sum, to); break;
      case 2: own_products<2>(own, others, n, own_sum, to); break;
      case 3: own_products<3>(own, others, n, own_sum, to); break;
      case 4: own_products<4>(own, others, n, own_sum, to); break;
    }
    own_sum = nullptr, count = 0;
  };
  for (int64_t j = 0; j < s.tasks; ++j) {
    if (j == owner) continue;
    others[count] = grads + j * s.grads_task, to[count++] = sums + j;
    if (count == products_at_once) add();
  }
  if (count || own_sum) add();
}

template <class G>
void dots_of_chunk(const Priority& s, int64_t c) {
  D8 sums[max_owners * max_owners];
  for (int64_t q = 0; q < s.tasks * s.tasks; ++q) sums[q] = set1(0.);
  const G* grads = static_cast<const G*>(s.grads);
  for_pieces(
      s, s.chunks[c], [](int64_t owner) { return owner; },
      [&](int64_t p, int64_t n, int64_t owner) {
        if (owner >= 0) products_of_piece(s, grads + p, n, owner, sums + owner * s.tasks);
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
      case 4: combine_chunk_of<4, G, O>(s, s.chunks[c]); break;
      case 5: combine_chunk_of<5, G, O>(s, s.chunks[c]); break;
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
