// Random masks of tasks over the columns of a layout, gradients of these tasks, and scores.
#pragma once
#include <memory>

#include "core/mask.h"
#include "data.h"

namespace data {

template <class G>
struct MaskProblem {
  int64_t tasks;
  Layout layout = plan_layout(numels);
  Random random;
  int64_t bytes = (layout.chunks.back().end + 7) / 8;  // behind the last column there is nothing
  std::vector<uint8_t> masks;
  std::unique_ptr<bool[]> whole{new bool[numels.size()]()};
  Matrix<G> values, grads;
  BothWays<G> both;
  std::vector<double> factors;

  explicit MaskProblem(int64_t tasks)
      : tasks(tasks),
        values(random.matrix<G>(1, layout)),
        grads(with_some_missing(random.matrix<G>(tasks, layout))),
        both(grads, tasks, layout),
        factors(random.weights(tasks)) {
    for (int64_t i = 0; i < tasks * bytes; ++i) masks.push_back(uint8_t(256. * random.uniform()));
    whole[2] = true;
  }
  Matrix<G> with_some_missing(Matrix<G> m) const {
    set_some_to_zero(m, layout);
    return m;
  }
  bool has(int64_t t, int64_t p) const { return (masks[t * bytes + p / 8] >> (p % 8) & 1) != 0; }

  Mask view(Matrix<G>& out) const {
    return {values.values.data(),
            out.values.data(),
            type_of<G>,
            {masks.data(), bytes, whole.get(), false},
            layout.chunks.data()};
  }
  Harmony scored(Matrix<float>& scores, const Gradients& where, bool dense) const {
    return {tasks,
            where,
            values.values.data(),
            factors.data(),
            {masks.data(), bytes, whole.get(), false},
            3.,
            !dense,
            dense,
            scores.values.data(),
            scores.row,
            layout.chunks.data()};
  }
};

// Scores of which many are equal; the masks that an exchange changes, and its scratch.
struct ExchangeProblem {
  int64_t tasks;
  MaskProblem<float> of;
  Matrix<float> scores;
  std::vector<uint8_t> masks;
  std::vector<int32_t> counts;
  std::vector<uint64_t> state;

  explicit ExchangeProblem(int64_t tasks)
      : tasks(tasks),
        of(tasks),
        scores(of.random.matrix<float>(tasks, of.layout)),
        masks(of.masks),
        counts(tasks * of.layout.chunks.size() * exchange_bins, -1),
        state(tasks * exchange_state, 7) {
    for (const Chunk& c : of.layout.chunks)
      for (int64_t p = c.begin; p < c.end; ++p) scores[0][p] = std::floor(scores[0][p]);
  }
  Exchange arguments(int64_t amount) {
    return {tasks,      int64_t(of.layout.chunks.size()), amount,        masks.data(), of.bytes, scores.values.data(),
            scores.row, of.layout.chunks.data(),          counts.data(), state.data()};
  }
};

}  // namespace data
