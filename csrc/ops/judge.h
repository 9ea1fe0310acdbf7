// The arguments of family `judge`, checked, for every backend.
#pragma once
#include "../core/judge.h"

#include <vector>

#include "tensors.h"

namespace mt2o::ops {

using Tensors = std::vector<Tensor>;

template <class T, size_t Dims>
T* table_of(const MaybeTensor& t, const char* name, ScalarType type, const int64_t (&sizes)[Dims]) {
  if (!t.has_value()) return nullptr;
  check_table(*t, name, type, sizes);
  return data<T>(*t);
}

// `scalars` [K T] are gathered into the table; without any it holds its numbers already.
inline Losses losses_of(const MaybeTensor& losses, const Tensors& scalars, int64_t rows, int64_t tasks) {
  Losses s = {};
  s.table = table_of<double>(losses, "losses", ScalarType::Double, {rows, tasks});
  STD_TORCH_CHECK(scalars.empty() || (s.table && int64_t(scalars.size()) == rows * tasks), "mt2o_ext: scalars must be ",
                  rows * tasks, " losses, with a table [", rows, ", ", tasks, "]");
  for (const Tensor& scalar : scalars) {
    STD_TORCH_CHECK(scalar.numel() == 1, "mt2o_ext: scalars must have one element each, not ", scalar.numel());
    type_of(scalar, "scalars");
  }
  return s;
}
// The next of the scalars whose addresses travel with one launch; false: there are none left.
inline bool take_scalars(Losses& s, const Tensors& scalars) {
  s.first += s.count;
  s.count = std::min(max_scalars, int64_t(scalars.size()) - s.first);
  for (int64_t i = 0; i < s.count; ++i) {
    const Tensor& scalar = scalars[size_t(s.first + i)];
    s.scalars[i] = scalar.const_data_ptr();
    s.types[i] = uint8_t(type_of(scalar, "scalars"));
  }
  return s.first + s.count < int64_t(scalars.size());
}

struct JudgeTensors {
  Tensor found, flags;
  MaybeTensor losses, sums, filled, usable_losses, largest;
  Tensors scalars;
  MaybeTensor grams, factor, before, outside;
};

inline Judge judge_arguments(const JudgeTensors& t, double limit, bool together) {
  STD_TORCH_CHECK(t.found.dim() == 1 && t.flags.dim() == 2, "mt2o_ext: found must be [K] and flags [2, K]");
  Judge s = {};
  s.rows = t.found.size(0);
  check_table(t.found, "found", ScalarType::Float, {s.rows});
  check_table(t.flags, "flags", ScalarType::Bool, {2, s.rows});
  if (t.grams.has_value()) {
    STD_TORCH_CHECK(t.sums.has_value() && (t.grams->dim() == 3 || t.grams->dim() == 4),
                    "mt2o_ext: grams must be [K, S, T, T], or squares [K, S, T], and need sums");
    s.tasks = t.grams->size(2), s.segments = t.grams->size(1), s.diagonal = t.grams->dim() == 3;
    if (s.diagonal) {
      check_table(*t.grams, "grams", ScalarType::Double, {s.rows, s.segments, s.tasks});
      check_table(*t.sums, "sums", ScalarType::Double, {s.rows, s.tasks});
    } else {
      check_table(*t.grams, "grams", ScalarType::Double, {s.rows, s.segments, s.tasks, s.tasks});
      check_table(*t.sums, "sums", ScalarType::Double, {s.rows, s.tasks, s.tasks});
    }
    s.grams = const_data<double>(*t.grams), s.sums = data<double>(*t.sums);
  } else {
    STD_TORCH_CHECK(t.losses.has_value() && t.losses->dim() == 2 && !t.sums && !t.filled && !t.largest,
                    "mt2o_ext: without grams there must be losses [K, T], and no sums, filled and largest");
    s.tasks = t.losses->size(1);
  }
  STD_TORCH_CHECK(t.losses.has_value() || !t.usable_losses, "mt2o_ext: usable_losses are made of losses");
  s.losses = losses_of(t.losses, t.scalars, s.rows, s.tasks);
  s.filled = table_of<double>(t.filled, "filled", ScalarType::Double, {s.rows, s.tasks, s.tasks});
  s.usable_losses = table_of<double>(t.usable_losses, "usable_losses", ScalarType::Double, {s.rows, s.tasks});
  s.largest = table_of<double>(t.largest, "largest", ScalarType::Double, {s.rows, s.tasks});
  s.factor = table_of<float>(t.factor, "factor", ScalarType::Float, {1});
  s.before = table_of<float>(t.before, "before", ScalarType::Float, {s.rows});
  s.outside = table_of<bool>(t.outside, "outside", ScalarType::Bool, {s.rows, s.tasks});
  s.limit = limit, s.together = together;
  s.found = data<float>(t.found);
  s.finite = data<bool>(t.flags), s.usable = s.finite + s.rows;
  return s;
}

struct SettleTensors {
  Tensor weights, applied, flags, refusals, found;
  MaybeTensor losses;
  Tensor raw;
  Tensors scalars;
  MaybeTensor judged, before, outside, largest;
};

inline Settle settle_arguments(const SettleTensors& t, int64_t tasks, double limit, int64_t offset, double divisor) {
  STD_TORCH_CHECK(t.raw.dim() == 2, "mt2o_ext: raw must be [K, N]");
  Settle s = {};
  s.rows = t.raw.size(0), s.count = t.raw.size(1), s.tasks = tasks;
  STD_TORCH_CHECK(tasks >= 1 && s.count % tasks == 0, "mt2o_ext: raw must be [K, a multiple of ", tasks, "]");
  check_table(t.raw, "raw", ScalarType::Double, {s.rows, s.count});
  check_table(t.weights, "weights", ScalarType::Double, {s.rows, s.count});
  s.applied_type = type_of(t.applied, "applied");
  STD_TORCH_CHECK(s.applied_type == Type::float32 || s.applied_type == Type::float64,
                  "mt2o_ext: applied must be float32 or float64");
  check_table(t.applied, "applied", t.applied.scalar_type(), {s.rows, s.count});
  check_table(t.flags, "flags", ScalarType::Bool, {2, s.rows});
  check_table(t.refusals, "refusals", ScalarType::Double, {s.rows, 3});
  check_table(t.found, "found", ScalarType::Float, {s.rows});
  s.losses = losses_of(t.losses, t.scalars, s.rows, tasks);
  STD_TORCH_CHECK(t.losses.has_value() || !t.outside, "mt2o_ext: outside is about losses");
  if (const bool* judged = table_of<bool>(t.judged, "judged", ScalarType::Bool, {2, s.rows}))
    s.finite = judged, s.usable = judged + s.rows;
  s.before = table_of<float>(t.before, "before", ScalarType::Float, {s.rows});
  s.outside = table_of<bool>(t.outside, "outside", ScalarType::Bool, {s.rows, tasks});
  s.largest = table_of<double>(t.largest, "largest", ScalarType::Double, {s.rows, tasks});
  s.limit = limit, s.offset = offset, s.divisor = divisor;
  s.raw = const_data<double>(t.raw), s.weights = data<double>(t.weights), s.applied = t.applied.mutable_data_ptr();
  s.took_part = data<bool>(t.flags), s.refused = s.took_part + s.rows;
  s.refusals = data<double>(t.refusals), s.found = data<float>(t.found);
  return s;
}

struct CountTensors {
  Tensor counts;
  MaybeTensor table;
  Tensor found;
  MaybeTensor refusals, weights, finite;
};

inline Count count_arguments(const CountTensors& t, int64_t offset, bool together, bool expected) {
  STD_TORCH_CHECK(t.counts.dim() == 1, "mt2o_ext: counts must be [K]");
  Count s = {};
  s.rows = t.counts.size(0);
  check_table(t.counts, "counts", ScalarType::Long, {s.rows});
  check_table(t.found, "found", ScalarType::Float, {s.rows});
  s.table = table_of<double>(t.table, "table", ScalarType::Double, {s.rows, 4});
  s.refusals = table_of<double>(t.refusals, "refusals", ScalarType::Double, {s.rows, 3});
  STD_TORCH_CHECK(t.weights.has_value() == t.finite.has_value() && (!t.weights || t.weights->dim() == 2),
                  "mt2o_ext: weights [K, T] and finite [K] go together");
  if (t.weights.has_value()) {
    s.tasks = t.weights->size(1);
    s.weights = table_of<double>(t.weights, "weights", ScalarType::Double, {s.rows, s.tasks});
    s.finite = table_of<bool>(t.finite, "finite", ScalarType::Bool, {s.rows});
  }
  s.offset = offset, s.together = together, s.expected = expected;
  s.counts = data<int64_t>(t.counts), s.found = const_data<float>(t.found);
  return s;
}

}  // namespace mt2o::ops
