#include "../core/solve/barrier.h"
#include "../core/solve/cone.h"
#include "../core/solve/conflict_averse.h"
#include "../core/solve/descent.h"
#include "../core/solve/jacobi.h"
#include "../core/solve/projection.h"
#include "../core/solve/simplex.h"
#include "columns.cuh"

namespace mt2o::cuda {

// A problem is a block of one thread: problems are few, and each goes its own way, so that none waits for another.
template <class Solver>
__global__ void __launch_bounds__(1, 1) solve_problems(Solver s) {
  for (int64_t k = blockIdx.x; k < s.all.batch; k += gridDim.x) solve_one(s, k);
}

template <class Solver>
static Problem launch_solver(const Solver& s, Stream stream) {
  return s.all.batch == 0 ? nullptr : launch_units(solve_problems<Solver>, s.all.batch, 1, stream, s);
}

Problem solve(const MinimumNorm& s, Stream stream) { return launch_solver(s, stream); }
Problem solve(const ConflictAverse& s, Stream stream) { return launch_solver(s, stream); }
Problem solve(const PowerBarrier& s, Stream stream) { return launch_solver(s, stream); }
Problem solve(const DualCone& s, Stream stream) { return launch_solver(s, stream); }
Problem solve(const Eigen& s, Stream stream) { return launch_solver(s, stream); }
Problem solve(const Project& s, Stream stream) { return launch_solver(s, stream); }
Problem solve(const Descent& s, Stream stream) { return launch_solver(s, stream); }

}  // namespace mt2o::cuda
