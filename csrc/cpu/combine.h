// out[k] = sum_t weights[k][t] grads[k][t].  Included by kernels_impl.h.

// What is read where there is no gradient: as many zeros, of any type, as columns are worked on at a time.
constexpr int64_t zero_columns = 2 * step_tile;
alignas(64) const double zeros[zero_columns] = {};

// The gradients of one row in some columns (no more than zero_columns) of one segment, and their weights, rounded once
// for the loops.  The first of each stays in a register.
template <class G>
class WeightedGradients {
 public:
  WeightedGradients(const Gradients& grads, const double* weights, int64_t tasks, int64_t k, int64_t segment,
                    int64_t column)
      : tasks_(tasks) {
    const RowGradients<G> row(grads, k, segment, column, lie_apart(grads));
    const double* of_row = weights ? weights + k * tasks : nullptr;
    first_ = there(row[0]), first_weight_ = of_row ? Scalar<G>(of_row[0]) : Scalar<G>(1);
    for (int64_t t = 1; t < tasks; ++t) {
      others_[t].values = there(row[t]);
      others_[t].weight = of_row ? Scalar<G>(of_row[t]) : Scalar<G>(1);
    }
  }

  // The weighted sum of the group of columns i: what `combine` writes and `step` goes on with.
  template <class Left>
  Number<G> sum(int64_t i, Left left) const {
    return sum(i, left, [](int64_t, Number<G> x) { return x; });
  }
  // The same of what kept(t, x) leaves of the gradient x of task t.
  template <class Left, class Kept>
  Number<G> sum(int64_t i, Left left, Kept kept) const {
    Number<G> sum = set1(first_weight_) * kept(0, load(first_ + i, left));
    for (int64_t t = 1; t < tasks_; ++t)
      sum = fma(set1(others_[t].weight), kept(t, load(others_[t].values + i, left)), sum);
    return sum;
  }

 private:
  static const G* there(const G* values) { return values ? values : reinterpret_cast<const G*>(zeros); }

  int64_t tasks_;
  const G* first_;
  Scalar<G> first_weight_;
  struct {
    const G* values;
    Scalar<G> weight;
  } others_[max_tasks];
};

template <class G, class O>
void combine_chunk(const Combine& s, const Chunk& chunk) {
  for (int64_t k = 0; k < s.rows; ++k)
    for (int64_t p = chunk.begin; p < chunk.end; p += zero_columns) {
      const WeightedGradients<G> grads(s.grads, s.weights, s.tasks, k, chunk.segment, p);
      O* out = static_cast<O*>(s.out) + k * s.out_row + p;
      for_groups<Number<G>>(least(zero_columns, chunk.end - p),
                            [&](int64_t i, auto left) { store(out + i, grads.sum(i, left), left); });
    }
}

void combine(const Combine& s, int64_t first, int64_t last) {
  with_type(s.grads.type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    for (int64_t c = first; c < last; ++c)
      s.out_type == s.grads.type ? combine_chunk<G, G>(s, s.chunks[c]) : combine_chunk<G, Scalar<G>>(s, s.chunks[c]);
  });
}
