// Rows that meet each other one after the other: PCGrad (Yu et al., 2020), GradVac (Wang et al., 2021).
#pragma once
#include "rows.h"

namespace mt2o::solve {

// A row J'c on its way.
struct MovingRow {
  double* coefficients;  // c
  double* products;      // Qc
  double square;         // c'Qc
  double parts;          // sum_j c_j^2 Q_jj, where there are targets
};

// c += a e_j
MT2O_HD void add(MovingRow& row, double a, const double* gram, int64_t j, int64_t tasks) {
  row.square += 2. * a * row.products[j] + a * a * gram[j * tasks + j];
  row.coefficients[j] += a;
  axpy(row.products, a, gram + j * tasks, tasks);
}

// How much of row j brings the cosine with it from `cosine` to `target` (GradVac, eq. 4).
MT2O_HD double vaccine(double cosine, double target, double length, double other) {
  const double sine = sqrt(1. - cosine * cosine), target_sine = sqrt(1. - target * target);
  return length * (target * sine - cosine * target_sine) / (other * target_sine);
}

MT2O_HD void meet(MovingRow& row, const double* gram, int64_t j, int64_t tasks, double* target, double decay,
                  double rtol) {
  const double product = row.products[j], other = gram[j * tasks + j];
  if (!target) {
    if (product < 0.) add(row, -product / other, gram, j, tasks);
    return;
  }
  if (!(row.square > greater(rtol, least_rtol(tasks)) * row.parts)) return;  // a row that is rounding has no cosine
  const double length = sqrt(row.square), goal = *target;
  const double cosine = greater(lesser(product / (length * sqrt(other)), 1.), -1.);
  if (cosine < goal && goal * goal < 1.) {
    const double before = row.coefficients[j];
    add(row, vaccine(cosine, goal, length, sqrt(other)), gram, j, tasks);
    row.parts += (row.coefficients[j] * row.coefficients[j] - before * before) * other;
  }
  *target = (1. - decay) * goal + decay * cosine;
}

}  // namespace mt2o::solve

namespace mt2o {

MT2O_HD void solve_one(const Project& s, int64_t k) {
  const int64_t tasks = s.all.tasks;
  const double* gram = solve::gram_of(s.all, k);
  const int64_t* order = s.order + k * tasks * tasks;
  double* targets = s.targets ? s.targets + k * tasks * tasks : nullptr;
  double* weights = s.weights + k * tasks;
  if (!solve::all_finite(gram, tasks * tasks) || (targets && !solve::all_finite(targets, tasks * tasks)))
    return solve::fill(weights, tasks, solve::not_a_number());
  solve::Workspace w = solve::workspace_of(s.all, k);
  solve::MovingRow row = {solve::take(w, tasks), solve::take(w, tasks), 0., 0.};
  solve::fill(weights, tasks, 0.);
  for (int64_t i = 0; i < tasks; ++i) {
    if (!(gram[i * tasks + i] > 0.)) continue;
    solve::fill(row.coefficients, tasks, 0.);
    row.coefficients[i] = 1.;
    solve::copy(row.products, gram + i * tasks, tasks);
    row.square = row.parts = gram[i * tasks + i];
    for (int64_t at = 0; at < tasks; ++at) {
      const int64_t j = order[i * tasks + at];
      if (j == i || j < 0 || j >= tasks || !(gram[j * tasks + j] > 0.)) continue;
      solve::meet(row, gram, j, tasks, targets ? targets + i * tasks + j : nullptr, s.decay, s.all.rtol);
    }
    solve::axpy(weights, 1., row.coefficients, tasks);
  }
}

}  // namespace mt2o
