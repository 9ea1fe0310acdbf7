// Which bits of a mask change: exactly so many of the smallest scores, by a search for the last of them digit by digit.
//
// A key has the order of the scores, and behind it the column: so no two keys are equal, and of equal scores the first
// ones are taken.
#pragma once
#include "dtypes.h"

namespace mt2o {

constexpr int key_bits = 64;

// The order of numbers as that of whole ones; 0 and -0 are equal.  Not for NaN.
MT2O_HD uint32_t ordered(float score) {
  const uint32_t bits = bits_of(score + 0.f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
// Of what a mask has, the smallest scores come first, of the others the largest.
MT2O_HD uint64_t exchange_key(float score, bool inside, int64_t column) {
  return uint64_t(ordered(inside ? score : -score)) << 32 | uint64_t(uint32_t(column));
}

}  // namespace mt2o
