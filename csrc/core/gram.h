// What the gram kernels share: where the sum of a pair lies, and how sums of floats keep their range.
//
// Up to `gram_few` rows, and a diagonal alone, are summed in double throughout, which costs next to nothing while the
// memory is the bound.  Pairs of more rows are summed in float over a tile of columns and in double across.  Squares of
// floats vanish below 1e-23 and overflow above 1e19: so each tile takes the squares of its rows first, and a row whose
// square is out of range is divided by a power of two, exactly, before its other products are taken.
#pragma once
#include "arguments.h"
#include "dtypes.h"

namespace mt2o {

constexpr int64_t gram_few = 3;
constexpr int64_t gram_tile = 1024;  // at most so many columns are summed in float

MT2O_HD int64_t gram_pair(int64_t i, int64_t j) { return i * (i + 1) / 2 + j; }  // j <= i

// The sums of one chunk: of all pairs j <= i, of all i and j of two sets of rows, or of each row (with its other).
MT2O_HD int64_t gram_sums(const Gram& s) {
  if (s.diagonal) return s.rows;
  return s.cross ? s.rows * s.rows : gram_pair(s.rows, 0);
}

// With squares in this range over a tile, no product of two of its rows overflows, and what was lost of products below
// 2^-149 is less than 2^-29 of the geometric mean of their squares.
MT2O_HD bool gram_in_range(float square) { return square >= 0x1p-110f && square <= 0x1p126f; }

// The exponent of the power of two by which a row whose square is out of range is divided; its largest absolute value
// is then about one.  Rows of zeros, and rows with infinities or NaN, whose products are what they should be, stay.
MT2O_HD int32_t gram_exponent(float square, float largest) {
  if (square != square || largest == 0.f || bits_of(largest) == 0x7f800000) return 0;
  const int32_t exponent = int32_t(bits_of(largest) >> 23) - 127;
  return exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;  // so that its inverse is a normal float as well
}
MT2O_HD float gram_power(int32_t exponent) { return float_of(uint32_t(exponent + 127) << 23); }

}  // namespace mt2o
