#include "lanes.cuh"  // before the solvers

#include "../core/solve/barrier.h"
#include "../core/solve/cone.h"
#include "../core/solve/conflict_averse.h"
#include "../core/solve/simplex.h"
#include "columns.cuh"

namespace mt2o::cuda {

// The scratch of a problem of up to 40 tasks, which waits a tenth as long for a number as scratch in global memory.
constexpr int64_t tasks_in_shared = 40;
struct Scratch {
  double numbers[48 * 1024 / sizeof(double)];
};

// A warp takes a problem, of a dual cone with scratch of its own a bound: bounds are independent problems.
template <bool Shared, class Solver>
int64_t units_of(const Solver& s) {
  return s.all.batch;
}
template <bool Shared>
int64_t units_of(const DualCone& s) {
  return Shared ? s.all.batch * s.bounds : s.all.batch;
}
template <bool Shared, class Solver>
__device__ __forceinline__ void solve_unit(const Solver& s, int64_t unit) {
  solve_one(s, unit);
}
template <bool Shared>
__device__ __forceinline__ void solve_unit(const DualCone& s, int64_t unit) {
  if (Shared)
    solve_bounds(s, unit / s.bounds, unit % s.bounds, unit % s.bounds + 1);
  else
    solve_one(s, unit);
}

// A block of one warp, since each problem goes its own way.
template <class Solver, bool Shared>
__global__ void __launch_bounds__(warp, 1) solve_problems(Solver s, int64_t units) {
  if (Shared) s.all.workspace = block_shared<Scratch>().numbers, s.all.workspace_row = 0;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) solve_unit<Shared>(s, unit);
}

template <bool Shared, class Solver>
static Problem launch_solver(const Solver& s, Stream stream) {
  const int64_t units = units_of<Shared>(s);
  return units == 0 ? nullptr : launch_units(solve_problems<Solver, Shared>, units, warp, stream, s, units);
}
template <class Solver>
static Problem solve_all(const Solver& s, Stream stream) {
  static_assert(solve_workspace(tasks_in_shared) * sizeof(double) <= sizeof(Scratch));
  return s.all.tasks <= tasks_in_shared ? launch_solver<true>(s, stream) : launch_solver<false>(s, stream);
}

Problem solve(const MinimumNorm& s, Stream stream) { return solve_all(s, stream); }
Problem solve(const ConflictAverse& s, Stream stream) { return solve_all(s, stream); }
Problem solve(const PowerBarrier& s, Stream stream) { return solve_all(s, stream); }
Problem solve(const DualCone& s, Stream stream) { return solve_all(s, stream); }

}  // namespace mt2o::cuda
