// out = sum_t grads[t] + coefficients[layer][owner] grads[owner]
#include "core/priority.h"

#include "check.h"
#include "data.h"

using namespace data;

// A layer of two tensors (weight and bias), one of several runs to a channel, one over several chunks, and a tensor of
// no layer.
struct Problem {
  Layout layout = plan_layout({3 * 37, 3, 4 * 5 * 9, 19, 40000});
  std::vector<PriorityRecord> records = {
      {-1, 0, 1, layout.offsets[3], 19, 1}, {0, 0, 3, layout.offsets[0], 37, 1},    {0, 0, 3, layout.offsets[1], 1, 1},
      {1, 3, 5, layout.offsets[2], 9, 4},   {2, 8, 2, layout.offsets[4], 20000, 1},
  };
  std::vector<int64_t> owners;
  std::vector<Chunk> chunks;
  int64_t tasks;

  Problem(int64_t tasks) : tasks(tasks) {
    for (int64_t channel = 0; channel < 10; ++channel) owners.push_back(channel % 4 == 3 ? -1 : channel % tasks);
    for (int64_t r = 0; r < int64_t(records.size()); ++r) {
      const int64_t end = records[r].offset + records[r].runs * records[r].channels * records[r].length;
      for (int64_t begin = records[r].offset; begin < end; begin += 4096)
        chunks.push_back({r, begin, std::min(begin + 4096, end)});
    }
  }
  int64_t layer_of(const Chunk& c) const { return records[c.segment].layer; }
  // -1 for none, -2 outside of the tensors.
  std::vector<int64_t> owner_of_columns() const {
    std::vector<int64_t> owner(layout.row, -2);
    for (const PriorityRecord& r : records)
      for (int64_t i = 0; i < r.runs * r.channels * r.length; ++i)
        owner[r.offset + i] = r.layer < 0 ? -1 : owners[r.first_channel + i / r.length % r.channels];
    return owner;
  }
};

struct Results {
  Bytes out;
  std::vector<double> dots, coefficients;
};

template <class G, class O>
static Results run(const Problem& p, const Matrix<G>& grads, const Kernels& level, int threads) {
  Matrix<O> out(1, p.layout);
  const int64_t count = int64_t(p.chunks.size());
  std::vector<double> dots(count * p.tasks * p.tasks, 0.), coefficients(3 * p.tasks, 0.);
  const Priority s = {p.tasks,           grads.values.data(), type_of<G>,         grads.row,
                      out.values.data(), type_of<O>,          p.owners.data(),    p.records.data(),
                      p.chunks.data(),   dots.data(),         coefficients.data()};
  Layout shared = p.layout;
  shared.chunks = p.chunks;
  with_threads(threads, shared, [&](int64_t begin, int64_t end) { level.priority_dots(s, begin, end); });
  for (int64_t layer = 0, first = 0, last; layer < 3; ++layer) {
    while (p.layer_of(p.chunks[first]) < layer) ++first;
    for (last = first; last < count && p.layer_of(p.chunks[last]) == layer;) ++last;
    for (int64_t owner = 0; owner < p.tasks; ++owner)
      coefficients[layer * p.tasks + owner] = layer_coefficient(s, owner, first, last);
  }
  with_threads(threads, shared, [&](int64_t begin, int64_t end) { level.priority_combine(s, begin, end); });
  return {out.bytes(), dots, coefficients};
}

// Explicit projection in double.
template <class G, class O>
static void check_values(const Problem& p, const Matrix<G>& grads, const Results& results) {
  const std::vector<int64_t> owner = p.owner_of_columns();
  std::vector<double> sum(p.layout.row, 0.), size(p.layout.row, 0.);
  const auto add_layer = [&](int64_t layer, int64_t i) {
    std::vector<int64_t> columns;
    for (const PriorityRecord& r : p.records)
      for (int64_t c = r.offset; r.layer == layer && c < r.offset + r.runs * r.channels * r.length; ++c)
        if (owner[c] == i) columns.push_back(c);
    const auto dot = [&](int64_t a, int64_t b) {
      double total = 0.;
      for (const int64_t c : columns) total += grads.at(a, c) * grads.at(b, c);
      return total;
    };
    for (int64_t j = 0; j < p.tasks; ++j) {
      const double along = i < 0 || j == i ? 0. : dot(i, j) / dot(i, i);
      for (const int64_t c : columns) {
        const double taken = along < 0. ? along * grads.at(i, c) : 0.;
        sum[c] += grads.at(j, c) - taken, size[c] += std::fabs(grads.at(j, c)) + std::fabs(taken);
      }
    }
  };
  for (int64_t layer = -1; layer < 3; ++layer)
    for (int64_t i = -1; i < p.tasks; ++i) add_layer(layer, i);
  Matrix<O> out(1, p.layout);
  std::memcpy(out.values.data(), results.out.data(), results.out.size());
  for (int64_t c = 0; c < out.columns; ++c)
    if (owner[c] > -2)
      CHECK_NEAR(out.at(0, c), sum[c],
                 2 * rounding<O> * std::fabs(sum[c]) + double(p.tasks + 3) * rounding<Scalar<G>> * size[c] +
                     rounding<O> * 0x1p-14);
}

template <class G, class O>
static void check_priority(int64_t tasks) {
  Random random;
  const Problem problem(tasks);
  const Matrix<G> grads = random.matrix<G>(tasks, problem.layout);
  Results first;
  for_levels_and_threads([&](const Kernels& level, int threads) {
    const Results results = run<G, O>(problem, grads, level, threads);
    if (first.out.empty()) {
      first = results;
      check_values<G, O>(problem, grads, results);
    }
    CHECK_EQUAL(results.out, first.out);
    CHECK_EQUAL(results.dots, first.dots);
    CHECK_EQUAL(results.coefficients, first.coefficients);
  });
}

template <class G>
static void check_tasks() {
  for (const int64_t tasks : {1, 2, 3, 4, 5, 8}) {
    check_priority<G, G>(tasks);
    check_priority<G, Scalar<G>>(tasks);
  }
}

TEST(of_float) { check_tasks<float>(); }
TEST(of_double) { check_tasks<double>(); }
TEST(of_bfloat16) { check_tasks<bfloat16>(); }
TEST(of_float16) { check_tasks<float16>(); }

TEST(coefficient_of_a_conflict) {
  const double dots[] = {4., -2., 3., -1.};
  CHECK_EQUAL(conflict_coefficient(dots, 4, 0), 0.75);
  const double no_gradient[] = {0., 0.}, not_a_number[] = {NAN, -1.}, other_not_a_number[] = {1., NAN};
  CHECK_EQUAL(conflict_coefficient(no_gradient, 2, 0), 0.);
  CHECK_EQUAL(conflict_coefficient(not_a_number, 2, 0), 0.);
  CHECK_EQUAL(conflict_coefficient(other_not_a_number, 2, 0), 0.);
}
