// A problem for each kernel of family `elements`, and its results.
#pragma once
#include "data.h"

namespace data {

template <class G>
struct ElementsProblem {
  using S = Scalar<G>;
  static constexpr int64_t rows = 3, tasks = 3;
  const Layout layout = plan_layout(numels);
  const int64_t chunks = int64_t(layout.chunks.size());
  Matrix<G> grads;
  Matrix<S> memory, last;
  std::vector<double> keep, fresh, partials;
  bool finite[rows] = {true, false, true};
  int64_t key = -12345;

  explicit ElementsProblem(Random random = {})
      : grads(random.matrix<G>(rows * tasks, layout)),
        memory(random.matrix<S>(rows * tasks, layout)),
        last(random.matrix<S>(rows, layout)),
        keep(random.weights(rows * tasks)),
        fresh(random.weights(rows * tasks)),
        partials(rows * tasks * chunks, 0.) {
    for (S& x : memory.values) x = x < 0 ? -x : x;  // as sums of squares are
  }

  Elements of() {
    return {rows, tasks, grads.values.data(), type_of<G>, tasks * grads.row, grads.row, finite, layout.chunks.data()};
  }
  Track track(bool shown) {
    return {of(), memory.values.data(), tasks * memory.row, memory.row, keep.data(), fresh.data(), shown};
  }
  Feed feed() {
    return {of(),     memory.values.data(), tasks * memory.row, memory.row,  last.values.data(),
            last.row, keep.data(),          fresh.data(),       keep.data(), 0.75,
            4.};
  }
  Excess excess() { return {of(), memory.values.data(), tasks * memory.row, memory.row, partials.data(), chunks}; }
  DropSigns drop_signs() { return {of(), &key, 2, 0.25}; }

  // All that a kernel may have written to.
  Bytes results() const {
    Bytes all = grads.bytes();
    for (const Bytes& more : {memory.bytes(), last.bytes()}) all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};

}  // namespace data
