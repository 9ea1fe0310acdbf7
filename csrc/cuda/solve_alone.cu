// The solvers that no warp shares yet: a thread for each problem.
#include "../core/solve/descent.h"
#include "../core/solve/jacobi.h"
#include "../core/solve/projection.h"
#include "columns.cuh"

namespace mt2o::cuda {

// A problem is a block of one thread: problems are few, and each goes its own way, so that none waits for another.
template <class Solver>
__global__ void __launch_bounds__(1, 1) solve_alone(Solver s) {
  for (int64_t k = blockIdx.x; k < s.all.batch; k += gridDim.x) solve_one(s, k);
}

template <class Solver>
static Problem launch_alone(const Solver& s, Stream stream) {
  return s.all.batch == 0 ? nullptr : launch_units(solve_alone<Solver>, s.all.batch, 1, stream, s);
}

Problem solve(const Eigen& s, Stream stream) { return launch_alone(s, stream); }
Problem solve(const Project& s, Stream stream) { return launch_alone(s, stream); }
Problem solve(const Descent& s, Stream stream) { return launch_alone(s, stream); }

}  // namespace mt2o::cuda
