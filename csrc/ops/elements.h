// The arguments of family `elements`, checked.
#pragma once
#include "tensors.h"

namespace mt2o::ops {

// All but the chunks.
inline Elements elements_of(const Tensor& grads, const Tensor& finite) {
  Elements s = {};
  s.type = type_of(grads, "grads");
  check_rows(grads, "grads", 3);
  s.rows = grads.size(0), s.tasks = grads.size(1);
  STD_TORCH_CHECK(s.tasks >= 1 && s.tasks <= max_tasks, "mt2o_ext: 1 to ", max_tasks, " tasks, not ", s.tasks);
  s.grads = grads.mutable_data_ptr(), s.row = grads.stride(0), s.task = grads.stride(1);
  check_table(finite, "finite", ScalarType::Bool, {s.rows});
  s.finite = const_data<bool>(finite);
  return s;
}

// [K, T, P], or [K, P]: float32, or float64 beside gradients of float64.
inline void check_memory(const Tensor& memory, const char* name, const Tensor& grads, bool of_tasks) {
  check_rows(memory, name, of_tasks ? 3 : 2);
  const bool wide = grads.scalar_type() == ScalarType::Double;
  const bool right = memory.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float) &&
                     memory.size(0) == grads.size(0) && memory.size(-1) == grads.size(2) &&
                     (!of_tasks || memory.size(1) == grads.size(1));
  STD_TORCH_CHECK(right, "mt2o_ext: ", name, " must be ", of_tasks ? "[K, T, P]" : "[K, P]",
                  " where grads are [K, T, P], float32, or float64 as grads");
}

inline Track track_arguments(const Tensor& grads, const Tensor& memory, const Tensor& keep, const Tensor& fresh,
                             const Tensor& finite, bool shown) {
  Track s = {};
  s.of = elements_of(grads, finite);
  check_memory(memory, "memory", grads, true);
  s.memory = memory.mutable_data_ptr(), s.memory_row = memory.stride(0), s.memory_task = memory.stride(1);
  check_table(keep, "keep", ScalarType::Double, {s.of.rows, s.of.tasks});
  check_table(fresh, "fresh", ScalarType::Double, {s.of.rows, s.of.tasks});
  s.keep = const_data<double>(keep), s.fresh = const_data<double>(fresh), s.shown = shown;
  return s;
}

inline Feed feed_arguments(const Tensor& grads, const Tensor& last, const Tensor& memory, const Tensor& weights,
                           const Tensor& now, const Tensor& before, const Tensor& finite, double beta) {
  Feed s = {};
  s.of = elements_of(grads, finite);
  check_memory(memory, "memory", grads, true), check_memory(last, "last", grads, false);
  s.memory = memory.const_data_ptr(), s.memory_row = memory.stride(0), s.memory_task = memory.stride(1);
  s.last = last.mutable_data_ptr(), s.last_row = last.stride(0);
  check_table(weights, "weights", ScalarType::Double, {s.of.rows, s.of.tasks});
  check_table(now, "now", ScalarType::Double, {s.of.rows});
  check_table(before, "before", ScalarType::Double, {s.of.rows});
  STD_TORCH_CHECK(beta >= 0. && beta < 1., "mt2o_ext: beta must be in [0, 1), not ", beta);
  s.weights = const_data<double>(weights), s.now = const_data<double>(now), s.before = const_data<double>(before);
  s.beta = beta, s.inverse = 1. / (1. - beta);
  return s;
}

inline Excess excess_arguments(const Tensor& out, const Tensor& partials, const Tensor& squares, const Tensor& grads,
                               const Tensor& finite, int64_t num_chunks) {
  Excess s = {};
  s.of = elements_of(grads, finite);
  check_memory(squares, "squares", grads, true);
  s.squares = squares.mutable_data_ptr(), s.squares_row = squares.stride(0), s.squares_task = squares.stride(1);
  STD_TORCH_CHECK(out.dim() == 3, "mt2o_ext: out must be [K, S, T]");
  check_table(out, "out", ScalarType::Double, {s.of.rows, out.size(1), s.of.tasks});
  check_table(partials, "partials", ScalarType::Double, {s.of.rows, num_chunks, s.of.tasks});
  s.partials = data<double>(partials), s.num_chunks = num_chunks;
  return s;
}

inline DropSigns drop_signs_arguments(const Tensor& grads, const Tensor& key, const Tensor& finite, int64_t stream,
                                      double leak) {
  DropSigns s = {};
  s.of = elements_of(grads, finite);
  STD_TORCH_CHECK(key.scalar_type() == ScalarType::Long && key.numel() == 1, "mt2o_ext: key must be one int64");
  s.key = const_data<int64_t>(key), s.stream = stream, s.leak = leak;
  return s;
}

}  // namespace mt2o::ops
