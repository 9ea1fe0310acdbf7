// The arguments of family `solve` from tensors, for every backend.
#pragma once
#include "../core/solve/arguments.h"
#include "tensors.h"

namespace mt2o::ops {

template <size_t Dims>
double* table(const Tensor& t, const char* name, const int64_t (&sizes)[Dims]) {
  check_table(t, name, ScalarType::Double, sizes);
  return data<double>(t);
}
template <size_t Dims>
const double* const_table(const Tensor& t, const char* name, const int64_t (&sizes)[Dims]) {
  check_table(t, name, ScalarType::Double, sizes);
  return const_data<double>(t);
}

inline GramProblems gram_problems(const Tensor& gram, const Tensor& workspace, double rtol = 0.) {
  STD_TORCH_CHECK(gram.dim() == 3, "mt2o_ext: gram must be [K, T, T]");
  GramProblems all = {};
  all.batch = gram.size(0), all.tasks = gram.size(2);
  STD_TORCH_CHECK(all.tasks >= 1 && all.tasks <= max_tasks, "mt2o_ext: 1 to ", max_tasks, " tasks, not ", all.tasks);
  all.gram = const_table(gram, "gram", {all.batch, all.tasks, all.tasks});
  STD_TORCH_CHECK(workspace.scalar_type() == ScalarType::Double && workspace.dim() == 2 && workspace.is_contiguous() &&
                      workspace.size(0) == all.batch && workspace.size(1) >= solve_workspace(all.tasks),
                  "mt2o_ext: workspace must be float64, contiguous, of shape [", all.batch, ", at least ",
                  solve_workspace(all.tasks), "]");
  all.workspace = data<double>(workspace), all.workspace_row = workspace.size(1);
  STD_TORCH_CHECK(rtol >= 0., "mt2o_ext: rtol must be at least 0, not ", rtol);
  all.rtol = rtol;
  return all;
}

inline MinimumNorm minimum_norm_arguments(const Tensor& weights, const Tensor& workspace, const Tensor& gram,
                                          const MaybeTensor& linear) {
  MinimumNorm s = {};
  s.all = gram_problems(gram, workspace);
  const int64_t batch = s.all.batch, tasks = s.all.tasks;
  s.linear = linear ? const_table(*linear, "linear", {batch, tasks}) : nullptr;
  s.weights = table(weights, "weights", {batch, tasks});
  return s;
}

inline ConflictAverse conflict_averse_arguments(const Tensor& weights, const Tensor& workspace, const Tensor& gram,
                                                const Tensor& preferences, double radius, double rtol) {
  ConflictAverse s = {};
  s.all = gram_problems(gram, workspace, rtol);
  const int64_t batch = s.all.batch, tasks = s.all.tasks;
  s.preferences = const_table(preferences, "preferences", {batch, tasks});
  s.radius = radius;
  s.weights = table(weights, "weights", {batch, tasks});
  return s;
}

inline PowerBarrier power_barrier_arguments(const Tensor& weights, const Tensor& residual, const Tensor& workspace,
                                            const Tensor& gram, const Tensor& target, double power, double rtol) {
  PowerBarrier s = {};
  s.all = gram_problems(gram, workspace, rtol);
  const int64_t batch = s.all.batch, tasks = s.all.tasks;
  s.target = const_table(target, "target", {batch, tasks});
  s.power = power;
  s.weights = table(weights, "weights", {batch, tasks});
  s.residual = table(residual, "residual", {batch});
  return s;
}

inline DualCone dual_cone_arguments(const Tensor& weights, const Tensor& workspace, const Tensor& gram,
                                    const Tensor& lower, double rtol) {
  DualCone s = {};
  s.all = gram_problems(gram, workspace, rtol);
  STD_TORCH_CHECK(lower.dim() == 3, "mt2o_ext: lower must be [K, M, T]");
  s.bounds = lower.size(1);
  s.lower = const_table(lower, "lower", {s.all.batch, s.bounds, s.all.tasks});
  s.weights = table(weights, "weights", {s.all.batch, s.bounds, s.all.tasks});
  return s;
}

inline Eigen eigen_arguments(const Tensor& values, const Tensor& vectors, const Tensor& workspace, const Tensor& gram) {
  Eigen s = {};
  s.all = gram_problems(gram, workspace);
  const int64_t batch = s.all.batch, tasks = s.all.tasks;
  s.values = table(values, "values", {batch, tasks});
  s.vectors = table(vectors, "vectors", {batch, tasks, tasks});
  return s;
}

// `order` is checked by the caller: its entries lie where the backend is.
inline Project project_arguments(const Tensor& weights, const MaybeTensor& targets, const Tensor& workspace,
                                 const Tensor& gram, const Tensor& order, double decay, double rtol) {
  Project s = {};
  s.all = gram_problems(gram, workspace, rtol);
  const int64_t batch = s.all.batch, tasks = s.all.tasks;
  check_table(order, "order", ScalarType::Long, {batch, tasks, tasks});
  s.order = const_data<int64_t>(order);
  s.targets = targets ? table(*targets, "targets", {batch, tasks, tasks}) : nullptr;
  s.decay = decay;
  s.weights = table(weights, "weights", {batch, tasks});
  return s;
}

inline Descent descent_arguments(const Tensor& weights, const Tensor& workspace, const Tensor& gram,
                                 const Tensor& losses, const Tensor& rays, double tolerance, bool relax) {
  Descent s = {};
  s.all = gram_problems(gram, workspace);
  const int64_t batch = s.all.batch, tasks = s.all.tasks;
  s.losses = const_table(losses, "losses", {batch, tasks});
  s.rays = const_table(rays, "rays", {batch, tasks});
  s.tolerance = tolerance, s.relax = relax;
  s.weights = table(weights, "weights", {batch, tasks});
  return s;
}

}  // namespace mt2o::ops
