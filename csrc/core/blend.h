// The blend of rows, theta <- M theta, for one column.
//
// With N = M - I, whose rows sum to zero:  (M theta)_k = theta_k + sum_{j>0} N_kj (theta_j - theta_0).
// Differences between rows are what M is about: rounding errors have their size, not the size of theta; what all rows
// have in common passes through unchanged; a row with N_k = 0 keeps its bits.
//
// Rows are blended in blocks of `mix_block`; a column j from which none of a block takes is left out, so that it cannot
// give them a NaN times zero.
#pragma once
#include "arguments.h"

namespace mt2o {

// N_kj of a mix [K][K], in the scalar type of the loops.
template <class S>
MT2O_HD S coupling(const double* mix, int64_t rows, int64_t k, int64_t j) {
  return S(mix[k * rows + j] - (k == j ? 1. : 0.));
}

// The sum, begun with what else is added to theta_k, with what row k takes from row j.
template <class N>
MT2O_HD N with_taken(N sum, N coupling, N difference) {
  return fma(coupling, difference, sum);
}

}  // namespace mt2o
