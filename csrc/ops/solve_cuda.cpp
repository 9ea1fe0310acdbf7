#include "solve.h"

#include "cuda.h"

namespace mt2o::ops {
namespace {

void check_problems(const CurrentDevice& device, const Tensor& weights, const Tensor& workspace) {
  device.check(weights, "weights"), device.check(workspace, "workspace");
}

void minimum_norm_cuda_(Tensor weights, Tensor workspace, Tensor gram, MaybeTensor linear) {
  const CurrentDevice device(gram, "gram");
  check_problems(device, weights, workspace), device.check(linear, "linear");
  check_launched(cuda::solve(minimum_norm_arguments(weights, workspace, gram, linear), device.stream()),
                 "minimum_norm_");
}

void conflict_averse_cuda_(Tensor weights, Tensor workspace, Tensor gram, Tensor preferences, double radius,
                           double rtol) {
  const CurrentDevice device(gram, "gram");
  check_problems(device, weights, workspace), device.check(preferences, "preferences");
  check_launched(
      cuda::solve(conflict_averse_arguments(weights, workspace, gram, preferences, radius, rtol), device.stream()),
      "conflict_averse_");
}

void power_barrier_cuda_(Tensor weights, Tensor residual, Tensor workspace, Tensor gram, Tensor target, double power,
                         double rtol) {
  const CurrentDevice device(gram, "gram");
  check_problems(device, weights, workspace), device.check(residual, "residual"), device.check(target, "target");
  check_launched(
      cuda::solve(power_barrier_arguments(weights, residual, workspace, gram, target, power, rtol), device.stream()),
      "power_barrier_");
}

void dual_cone_cuda_(Tensor weights, Tensor workspace, Tensor gram, Tensor lower, double rtol) {
  const CurrentDevice device(gram, "gram");
  check_problems(device, weights, workspace), device.check(lower, "lower");
  check_launched(cuda::solve(dual_cone_arguments(weights, workspace, gram, lower, rtol), device.stream()),
                 "dual_cone_");
}

void eigen_cuda_(Tensor values, Tensor vectors, Tensor workspace, Tensor gram) {
  const CurrentDevice device(gram, "gram");
  device.check(values, "values"), device.check(vectors, "vectors"), device.check(workspace, "workspace");
  check_launched(cuda::solve(eigen_arguments(values, vectors, workspace, gram), device.stream()), "eigen_");
}

// Entries of `order` that are no tasks are passed over: looking at them here would wait for the GPU.
void project_cuda_(Tensor weights, MaybeTensor targets, Tensor workspace, Tensor gram, Tensor order, double decay,
                   double rtol) {
  const CurrentDevice device(gram, "gram");
  check_problems(device, weights, workspace), device.check(targets, "targets"), device.check(order, "order");
  check_launched(cuda::solve(project_arguments(weights, targets, workspace, gram, order, decay, rtol), device.stream()),
                 "project_");
}

void descent_cuda_(Tensor weights, Tensor workspace, Tensor gram, Tensor losses, Tensor rays, double tolerance,
                   bool relax) {
  const CurrentDevice device(gram, "gram");
  check_problems(device, weights, workspace), device.check(losses, "losses"), device.check(rays, "rays");
  check_launched(
      cuda::solve(descent_arguments(weights, workspace, gram, losses, rays, tolerance, relax), device.stream()),
      "descent_");
}

}  // namespace
}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(MT2O_LIBRARY, MT2O_DEVICE, m) {
  m.impl("minimum_norm_", TORCH_BOX(&mt2o::ops::minimum_norm_cuda_));
  m.impl("conflict_averse_", TORCH_BOX(&mt2o::ops::conflict_averse_cuda_));
  m.impl("power_barrier_", TORCH_BOX(&mt2o::ops::power_barrier_cuda_));
  m.impl("dual_cone_", TORCH_BOX(&mt2o::ops::dual_cone_cuda_));
  m.impl("eigen_", TORCH_BOX(&mt2o::ops::eigen_cuda_));
  m.impl("project_", TORCH_BOX(&mt2o::ops::project_cuda_));
  m.impl("descent_", TORCH_BOX(&mt2o::ops::descent_cuda_));
}
