// Agreement, importance and harmony of one element with the gradients of T tasks there (HarmoDT, arXiv 2405.18080):
//   harmony of what a mask has      I + gamma mean g,   I = g^2 or |theta|, mean and g of masked gradients
//   agreement of what it has not    mean g              of whole gradients (dense), or of masked ones, which are 0
// The mean is that over all tasks; nobody stores it.
#pragma once
#include "config.h"

namespace mt2o {

template <class N>
MT2O_HD N harmony_score(N importance, N gamma, N mean, N own) {
  return importance + gamma * mean * own;
}
template <class N>
MT2O_HD N agreement_score(N mean, N own) {
  return mean * own;
}

}  // namespace mt2o
