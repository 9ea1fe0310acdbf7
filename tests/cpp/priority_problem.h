// Layers of every shape for `priority`, and its result by explicit projection.
#pragma once
#include "check.h"
#include "core/priority.h"
#include "data.h"

namespace data {

// A layer of two tensors (weight and bias), one of several runs to a channel, one over several chunks, and a tensor of
// no layer.
struct PriorityProblem {
  Layout layout = plan_layout({3 * 37, 3, 4 * 5 * 9, 19, 10000});
  std::vector<PriorityRecord> records = {
      {-1, 0, 1, layout.offsets[3], 19, 1}, {0, 0, 3, layout.offsets[0], 37, 1},   {0, 0, 3, layout.offsets[1], 1, 1},
      {1, 3, 5, layout.offsets[2], 9, 4},   {2, 8, 2, layout.offsets[4], 5000, 1},
  };
  static constexpr int64_t layers = 3;
  std::vector<int64_t> owners;
  std::vector<Chunk> chunks;
  int64_t tasks;

  PriorityProblem(int64_t tasks) : tasks(tasks) {
    for (int64_t channel = 0; channel < 10; ++channel) owners.push_back(channel % 4 == 3 ? -1 : channel % tasks);
    for (int64_t r = 0; r < int64_t(records.size()); ++r) {
      const int64_t end = records[r].offset + records[r].runs * records[r].channels * records[r].length;
      for (int64_t begin = records[r].offset; begin < end; begin += 4096)
        chunks.push_back({r, begin, std::min(begin + 4096, end)});
    }
  }
  template <class G, class O>
  Priority arguments(const Matrix<G>& grads, Matrix<O>& out, std::vector<double>& dots,
                     std::vector<double>& coefficients) const {
    return {tasks,         grads.values.data(), type_of<G>,    grads.row,   out.values.data(),  type_of<O>,
            owners.data(), records.data(),      chunks.data(), dots.data(), coefficients.data()};
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

struct PriorityResults {
  Bytes out;
  std::vector<double> dots, coefficients;
};

// Explicit projection in double.
template <class G, class O>
void check_values(const PriorityProblem& p, const Matrix<G>& grads, const PriorityResults& results) {
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
  for (int64_t layer = -1; layer < p.layers; ++layer)
    for (int64_t i = -1; i < p.tasks; ++i) add_layer(layer, i);
  Matrix<O> out(1, p.layout);
  std::memcpy(out.values.data(), results.out.data(), results.out.size());
  for (int64_t c = 0; c < out.columns; ++c)
    if (owner[c] > -2)
      CHECK_NEAR(out.at(0, c), sum[c],
                 2 * rounding<O> * std::fabs(sum[c]) + double(p.tasks + 3) * rounding<Scalar<G>> * size[c] +
                     rounding<O> * 0x1p-14);
}

}  // namespace data
