// out[k] = sum_t weights[k][t] grads[k][t].  Included by kernels_impl.h.

// The weights of one row, rounded once for the loops.
template <class T>
struct RowWeights {
  T of[max_tasks];
  RowWeights(const double* weights, int64_t tasks) {
    for (int64_t t = 0; t < tasks; ++t) of[t] = weights ? T(weights[t]) : T(1);
  }
};

// The weighted sum of one group of columns: what `combine` writes and `step` goes on with.
template <class G, class Left>
inline Number<G> combined(const G* grads, int64_t task_stride, const RowWeights<Scalar<G>>& weights, int64_t tasks,
                          Left left) {
  Number<G> sum = set1(weights.of[0]) * load(grads, left);
  for (int64_t t = 1; t < tasks; ++t) sum = fma(set1(weights.of[t]), load(grads + t * task_stride, left), sum);
  return sum;
}

template <class G, class O>
void combine_chunk(const Combine& s, const Chunk& chunk) {
  for (int64_t k = 0; k < s.rows; ++k) {
    const RowWeights<Scalar<G>> weights(s.weights + k * s.tasks, s.tasks);
    const G* grads = static_cast<const G*>(s.grads) + k * s.grads_row + chunk.begin;
    O* out = static_cast<O*>(s.out) + k * s.out_row + chunk.begin;
    for_groups<Number<G>>(chunk.end - chunk.begin, [&](int64_t i, auto left) {
      store(out + i, combined(grads + i, s.grads_task, weights, s.tasks, left), left);
    });
  }
}

void combine(const Combine& s, int64_t first, int64_t last) {
  with_type(s.grads_type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    for (int64_t c = first; c < last; ++c)
      s.out_type == s.grads_type ? combine_chunk<G, G>(s, s.chunks[c]) : combine_chunk<G, Scalar<G>>(s, s.chunks[c]);
  });
}
