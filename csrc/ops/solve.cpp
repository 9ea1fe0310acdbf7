#include "solve.h"

#include "../core/solve/barrier.h"
#include "../core/solve/cone.h"
#include "../core/solve/conflict_averse.h"
#include "../core/solve/descent.h"
#include "../core/solve/jacobi.h"
#include "../core/solve/projection.h"
#include "../core/solve/simplex.h"

namespace mt2o::ops {

// Problems are independent; small ones share a thread.
template <class Solver>
void solve_all(const Solver& s) {
  const int64_t work = s.all.tasks * s.all.tasks * s.all.tasks;
  torch::stable::parallel_for(0, s.all.batch, 1 + 8192 / work, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) solve_one(s, k);
  });
}

void minimum_norm_(Tensor weights, Tensor workspace, Tensor gram, MaybeTensor linear) {
  solve_all(minimum_norm_arguments(weights, workspace, gram, linear));
}

void conflict_averse_(Tensor weights, Tensor workspace, Tensor gram, Tensor preferences, double radius, double rtol) {
  solve_all(conflict_averse_arguments(weights, workspace, gram, preferences, radius, rtol));
}

void power_barrier_(Tensor weights, Tensor residual, Tensor workspace, Tensor gram, Tensor target, double power,
                    double rtol) {
  solve_all(power_barrier_arguments(weights, residual, workspace, gram, target, power, rtol));
}

void dual_cone_(Tensor weights, Tensor workspace, Tensor gram, Tensor lower, double rtol) {
  solve_all(dual_cone_arguments(weights, workspace, gram, lower, rtol));
}

void eigen_(Tensor values, Tensor vectors, Tensor workspace, Tensor gram) {
  solve_all(eigen_arguments(values, vectors, workspace, gram));
}

void project_(Tensor weights, MaybeTensor targets, Tensor workspace, Tensor gram, Tensor order, double decay,
              double rtol) {
  const Project s = project_arguments(weights, targets, workspace, gram, order, decay, rtol);
  for (int64_t i = 0; i < order.numel(); ++i)
    STD_TORCH_CHECK(s.order[i] >= 0 && s.order[i] < s.all.tasks, "mt2o_ext: order must hold tasks, 0 to ",
                    s.all.tasks - 1, ", not ", s.order[i]);
  solve_all(s);
}

void descent_(Tensor weights, Tensor workspace, Tensor gram, Tensor losses, Tensor rays, double tolerance, bool relax) {
  solve_all(descent_arguments(weights, workspace, gram, losses, rays, tolerance, relax));
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) {
  m.impl("minimum_norm_", TORCH_BOX(&mt2o::ops::minimum_norm_));
  m.impl("conflict_averse_", TORCH_BOX(&mt2o::ops::conflict_averse_));
  m.impl("power_barrier_", TORCH_BOX(&mt2o::ops::power_barrier_));
  m.impl("dual_cone_", TORCH_BOX(&mt2o::ops::dual_cone_));
  m.impl("eigen_", TORCH_BOX(&mt2o::ops::eigen_));
  m.impl("project_", TORCH_BOX(&mt2o::ops::project_));
  m.impl("descent_", TORCH_BOX(&mt2o::ops::descent_));
}
