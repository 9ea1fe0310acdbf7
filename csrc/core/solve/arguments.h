// What the solvers of family `solve` take: K problems of T tasks, float64, raw pointers to contiguous arrays.
//
// solve_one(s, k) in the file of each solver solves problem k: no allocation, no recursion, a bounded number of
// iterations.  An input that is not finite gives NaN; tasks with gram[t][t] = 0 get weight 0.
#pragma once
#include "../arguments.h"

namespace mt2o {

// Doubles of scratch for one problem, whatever the solver.
MT2O_HD constexpr int64_t solve_workspace(int64_t tasks) { return 3 * tasks * tasks + 32 * tasks + 64; }

struct GramProblems {
  int64_t batch, tasks;
  const double* gram;     // [K][T][T], symmetric; the lower triangle is read
  double* workspace;      // problem k has workspace + k * workspace_row
  int64_t workspace_row;  // >= solve_workspace(tasks)
  double rtol = 0.;       // a combination J'w is rounding where |J'w|^2 <= rtol sum_t (w_t |g_t|)^2
};

// weights[k] = argmin w'Qw/2 + q'w over the simplex
struct MinimumNorm {
  GramProblems all;
  const double* linear;  // [K][T], or nullptr: 0
  double* weights;       // [K][T]
};

// weights[k]: the longest step against conflicts in the ball |d - J'u| <= radius |J'u|; 0 where the rows' least norm is
// rounding
struct ConflictAverse {
  GramProblems all;
  const double* preferences;  // [K][T]: u
  double radius;
  double* weights;  // [K][T]
};

// weights[k]: x > 0 with (Qx)_i = (target_i / x_i)^power
struct PowerBarrier {
  GramProblems all;
  const double* target;  // [K][T]
  double power;
  double* weights;   // [K][T]
  double* residual;  // [K]
};

// weights[k][m] = argmin v'Qv + rtol sum_t (z_t |g_t|)^2, z = v - lower[k][m] >= 0
struct DualCone {
  GramProblems all;
  int64_t bounds;       // M
  const double* lower;  // [K][M][T]
  double* weights;      // [K][M][T]
};

// gram[k] = vectors[k] diag(values[k]) vectors[k]'
struct Eigen {
  GramProblems all;
  double* values;   // [K][T], ascending
  double* vectors;  // [K][T][T], in columns
};

// weights[k]: the sum of all rows after each has met the others in its order
struct Project {
  GramProblems all;
  const int64_t* order;  // [K][T][T]
  double* targets;       // [K][T][T] cosines wanted; or nullptr: 0 where rows conflict
  double decay;
  double* weights;  // [K][T]
};

// weights[k]: EPO's linear program
struct Descent {
  GramProblems all;
  const double *losses, *rays;  // [K][T]
  double tolerance;
  bool relax;
  double* weights;  // [K][T]
};

}  // namespace mt2o
