// A linear program over the simplex by the dense simplex method with dictionaries (Chvatal, 1983).
#pragma once
#include "rows.h"

namespace mt2o::solve {

// max objective'w over w >= 0, sum w = 1, matrix w >= bound.
//
// Each row of the dictionary writes a basic variable as a constant and a combination of the others ("free", all zero).
// Variables: 0 .. n-1 w; n .. n+m-1 surpluses of the conditions; n+m an artificial one, which is added to every
// condition and driven to zero first.  Numbers are about 1: rows of the matrix and the objective are scaled by the
// caller.
struct Program {
  int64_t variables, conditions;  // n, m
  int64_t width;                  // 1 + n: constant, n - 1 free variables, the artificial one
  double* dictionary;             // [m + 2][width]: conditions, sum w = 1, objective
  int64_t *basic, *free;          // [m + 1], [n]: which variables these are; free[j] has column j + 1
};
constexpr double program_tolerance = 1e-11;

MT2O_HD double& entry(const Program& p, int64_t row, int64_t column) { return p.dictionary[row * p.width + column]; }
MT2O_HD int64_t artificial(const Program& p) { return p.variables + p.conditions; }

// The dictionary at w = e_vertex.
MT2O_HD Program program_of(const double* objective, const double* matrix, const double* bound, int64_t variables,
                           int64_t conditions, int64_t vertex, Workspace& w) {
  Program p = {};
  p.variables = variables, p.conditions = conditions, p.width = variables + 1;
  p.dictionary = take(w, (conditions + 2) * p.width);
  p.basic = take_indices(w, conditions + 1), p.free = take_indices(w, variables);
  for (int64_t i = 0; i <= conditions + 1; ++i) {
    const double* row = i < conditions ? matrix + i * variables : objective;
    const bool sum = i == conditions;
    entry(p, i, 0) = sum ? 1. : i < conditions ? row[vertex] - bound[i] : row[vertex];
    int64_t column = 1;
    for (int64_t j = 0; j < variables; ++j)
      if (j != vertex) entry(p, i, column++) = sum ? -1. : row[j] - row[vertex];
    entry(p, i, column) = i < conditions ? 1. : 0.;
    if (i <= conditions) p.basic[i] = sum ? vertex : variables + i;
  }
  int64_t column = 0;
  for (int64_t j = 0; j < variables; ++j)
    if (j != vertex) p.free[column++] = j;
  p.free[column] = artificial(p);
  return p;
}

// The basic variable of `row` and the free one of `column` change places.
MT2O_HD void pivot(Program& p, int64_t row, int64_t column) {
  double* own = p.dictionary + row * p.width;
  const double factor = 1. / own[column];
  for (int64_t j = 0; j < p.width; ++j) own[j] *= -factor;
  own[column] = factor;
  for (int64_t i = 0; i <= p.conditions + 1; ++i) {
    if (i == row) continue;
    double* other = p.dictionary + i * p.width;
    const double multiple = other[column];
    other[column] = 0.;
    axpy(other, multiple, own, p.width);
  }
  const int64_t entered = p.free[column - 1];
  p.free[column - 1] = p.basic[row];
  p.basic[row] = entered;
}

// The free variable that improves the most, or (Bland's rule, which never cycles) the first that improves; 0: none.
MT2O_HD int64_t improving(const Program& p, int64_t row, double sign, bool bland) {
  int64_t best = 0;
  double most = program_tolerance;
  for (int64_t j = 1; j < p.width; ++j) {
    if (p.free[j - 1] == artificial(p)) continue;
    const double gain = sign * entry(p, row, j);
    if (gain <= (bland ? program_tolerance : most)) continue;
    if (bland && best > 0 && p.free[j - 1] > p.free[best - 1]) continue;
    best = j, most = gain;
  }
  return best;
}

// The basic variable that reaches zero first when `column` grows; the artificial one if it may be; -1: none.
MT2O_HD int64_t blocking(const Program& p, int64_t column, bool bland) {
  int64_t best = -1;
  double least = infinity();
  for (int64_t i = 0; i <= p.conditions; ++i) {
    const double slope = entry(p, i, column);
    if (slope >= -program_tolerance) continue;
    const double length = greater(entry(p, i, 0), 0.) / -slope;
    if (length > least * (1. + epsilon)) continue;
    bool better = best < 0 || length < least * (1. - epsilon) || p.basic[i] == artificial(p);
    if (!better && p.basic[best] != artificial(p))
      better = bland ? p.basic[i] < p.basic[best] : slope < entry(p, best, column);
    if (better) best = i, least = length;
  }
  return best;
}

// Pivots until sign times `row` has no free variable that improves it.  With `row` that of the artificial variable, it
// may leave the basis.
MT2O_HD void optimise(Program& p, int64_t row, double sign) {
  const int64_t patient = 8 * (p.variables + p.conditions);
  for (int64_t iteration = 0; iteration < 4 * patient; ++iteration) {
    if (row <= p.conditions && p.basic[row] != artificial(p)) return;
    const int64_t column = improving(p, row, sign, iteration >= patient);
    if (column == 0) return;
    const int64_t leaving = blocking(p, column, iteration >= patient);
    if (leaving < 0) return;
    pivot(p, leaving, column);
  }
}

// True if all conditions hold, after pivots if need be.
MT2O_HD bool make_feasible(Program& p) {
  int64_t worst = 0;
  for (int64_t i = 1; i < p.conditions; ++i)
    if (entry(p, i, 0) < entry(p, worst, 0)) worst = i;
  if (p.conditions == 0 || entry(p, worst, 0) >= 0.) return true;
  pivot(p, worst, p.width - 1);
  optimise(p, worst, -1.);
  if (p.basic[worst] != artificial(p)) return true;
  if (entry(p, worst, 0) > program_tolerance) return false;
  int64_t column = 1;  // it is zero: any variable takes its place
  for (int64_t j = 2; j < p.width; ++j)
    if (absolute(entry(p, worst, j)) > absolute(entry(p, worst, column))) column = j;
  if (absolute(entry(p, worst, column)) > program_tolerance) pivot(p, worst, column);
  return true;
}

// w in `solution` [n]; false if there is none.
MT2O_HD bool maximise(Program& p, double* solution) {
  if (!make_feasible(p)) return false;
  optimise(p, p.conditions + 1, 1.);
  double sum = 0.;
  fill(solution, p.variables, 0.);
  for (int64_t i = 0; i <= p.conditions; ++i)
    if (p.basic[i] < p.variables) sum += solution[p.basic[i]] = greater(entry(p, i, 0), 0.);
  for (int64_t i = 0; i < p.variables; ++i) solution[i] /= sum;
  return true;
}

}  // namespace mt2o::solve
