// Weightings that change the task gradients element by element (core/elements.h).  Included by kernels_impl.h.

// body(Of<G>, k, chunk) for the rows that are finite, or for all.
template <class Body>
inline void for_rows(const Elements& s, int64_t first, int64_t last, Body body, bool all = false) {
  with_type(s.type, [&](auto type) {
    for (int64_t c = first; c < last; ++c)
      for (int64_t k = 0; k < s.rows; ++k)
        if (all || s.finite[k]) body(type, k, s.chunks[c]);
  });
}
template <class T>
inline T* at(void* values, int64_t first, const Chunk& chunk) {
  return static_cast<T*>(values) + first + chunk.begin;
}
template <class T>
inline const T* at(const void* values, int64_t first, const Chunk& chunk) {
  return static_cast<const T*>(values) + first + chunk.begin;
}

void track(const Track& s, int64_t first, int64_t last) {
  for_rows(s.of, first, last, [&](auto type, int64_t k, const Chunk& chunk) {
    using G = typename decltype(type)::type;
    using S = Scalar<G>;
    for (int64_t t = 0; t < s.of.tasks; ++t) {
      G* grads = at<G>(s.of.grads, k * s.of.row + t * s.of.task, chunk);
      S* memory = at<S>(s.memory, k * s.memory_row + t * s.memory_task, chunk);
      const Number<G> keep = set1(S(s.keep[k * s.of.tasks + t])), fresh = set1(S(s.fresh[k * s.of.tasks + t]));
      for_groups<Number<G>>(chunk.end - chunk.begin, [&](int64_t i, auto left) {
        const Number<G> now = tracked(load(memory + i, left), load(grads + i, left), keep, fresh);
        store(memory + i, now, left);
        if (s.shown) store(grads + i, now, left);
      });
    }
  });
}

void feed(const Feed& s, int64_t first, int64_t last) {
  for_rows(s.of, first, last, [&](auto type, int64_t k, const Chunk& chunk) {
    using G = typename decltype(type)::type;
    using S = Scalar<G>;
    const S* memory = at<S>(s.memory, k * s.memory_row, chunk);
    S* before = at<S>(s.last, k * s.last_row, chunk);
    G* grads = at<G>(s.of.grads, k * s.of.row, chunk);
    const double* weights = s.weights + k * s.of.tasks;
    for_groups<Number<G>>(chunk.end - chunk.begin, [&](int64_t i, auto left) {
      Number<G> direction = set1(S(weights[0])) * load(memory + i, left);
      for (int64_t t = 1; t < s.of.tasks; ++t)
        direction = fma(set1(S(weights[t])), load(memory + t * s.memory_task + i, left), direction);
      store(grads + i,
            fed(direction, load(before + i, left), set1(S(s.now[k])), set1(S(s.before[k])), set1(S(s.beta)),
                set1(S(s.inverse))),
            left);
      store(before + i, direction, left);
      for (int64_t t = 1; t < s.of.tasks; ++t) store(grads + t * s.of.task + i, direction - direction, left);
    });
  });
}

struct SquaresOf {  // a group of float is two of double
  D8 sum = set1(0.), least = set1(least_root);
  F16 add(F16 gradient, F16 squares) {
    double both[16];
    D8 lower = lower_half(squares), upper = upper_half(squares);
    sum = sum + excess_of(lower_half(gradient), lower, least);
    sum = sum + excess_of(upper_half(gradient), upper, least);
    store(both, lower), store(both + 8, upper);
    float rounded[16];
    for (int i = 0; i < 16; ++i) rounded[i] = float(both[i]);
    return load(rounded);
  }
  D8 add(D8 gradient, D8 squares) {
    sum = sum + excess_of(gradient, squares, least);
    return squares;
  }
};

void excess(const Excess& s, int64_t first, int64_t last) {
  const auto body = [&](auto type, int64_t k, const Chunk& chunk) {
    using G = typename decltype(type)::type;
    using S = Scalar<G>;
    for (int64_t t = 0; t < s.of.tasks; ++t) {
      const G* grads = at<G>(static_cast<const void*>(s.of.grads), k * s.of.row + t * s.of.task, chunk);
      S* squares = at<S>(s.squares, k * s.squares_row + t * s.squares_task, chunk);
      SquaresOf sums;
      for_groups<Number<G>>(chunk.end - chunk.begin, [&](int64_t i, auto left) {
        const Number<G> now = sums.add(load(grads + i, left), load(squares + i, left));
        if (s.of.finite[k]) store(squares + i, now, left);
      });
      s.partials[(k * s.num_chunks + (&chunk - s.of.chunks)) * s.of.tasks + t] = total(sums.sum);
    }
  };
  for_rows(s.of, first, last, body, true);
}

inline D8 absolute(D8 x) { return max(x, x - x - x); }

// Sums over the tasks, and over their absolute values, of one group of columns.
struct SignsOf {
  D8 sum[2] = {set1(0.), set1(0.)}, size[2] = {set1(0.), set1(0.)};
  void add(D8 x, int half = 0) { sum[half] = sum[half] + x, size[half] = size[half] + absolute(x); }
  void add(F16 x) { add(lower_half(x), 0), add(upper_half(x), 1); }
  void store_to(double* sums, double* sizes) const {
    for (int half = 0; half < 2; ++half) store(sums + 8 * half, sum[half]), store(sizes + 8 * half, size[half]);
  }
};

void drop_signs(const DropSigns& s, int64_t first, int64_t last) {
  const uint64_t stream = with_stream(*s.key, s.stream);
  for_rows(s.of, first, last, [&](auto type, int64_t k, const Chunk& chunk) {
    using G = typename decltype(type)::type;
    using S = Scalar<G>;
    using N = Number<G>;
    G* grads = at<G>(s.of.grads, k * s.of.row, chunk);
    const uint64_t row = with_id(stream, k);
    for_groups<N>(chunk.end - chunk.begin, [&](int64_t i, auto left) {
      SignsOf signs;
      for (int64_t t = 0; t < s.of.tasks; ++t) signs.add(load(grads + t * s.of.task + i, left));
      double sum[16], size[16];
      signs.store_to(sum, size);
      S positive[N::lanes], negative[N::lanes];
      for (int j = 0; j < N::lanes; ++j) {
        const double chance = uniform(with_id(row, chunk.begin + i + j));
        const Kept<S> kept = kept_signs(sum[j], size[j], chance, S(s.leak));
        positive[j] = kept.positive, negative[j] = kept.negative;
      }
      const N by_positive = load(positive), by_negative = load(negative);
      for (int64_t t = 0; t < s.of.tasks; ++t) {
        G* of_task = grads + t * s.of.task + i;
        store(of_task, times_kept(load(of_task, left), by_positive, by_negative), left);
      }
    });
  });
}
