// Problems for the inner products of rows, and their solutions in double.
#pragma once
#include "core/gram.h"
#include "data.h"

namespace data {

enum class Pairs { all, cross, diagonal, cross_diagonal };
struct GramCase {
  int64_t batch, rows;
  Pairs kind;
  bool centre;
  bool cross() const { return kind == Pairs::cross || kind == Pairs::cross_diagonal; }
  bool diagonal() const { return kind == Pairs::diagonal || kind == Pairs::cross_diagonal; }
};

// A column of rows in double, less its mean; and the largest difference, whose size centring rounds in.
template <class G>
double column_of(const Matrix<G>& values, const GramCase& of, int64_t b, int64_t p, std::vector<double>& column) {
  double mean = 0., spread = 0.;
  const double first = values.at(b * of.rows, p);
  for (int64_t i = 0; of.centre && i < of.rows; ++i) {
    const double difference = values.at(b * of.rows + i, p) - first;
    mean += difference / double(of.rows), spread = std::max(spread, std::fabs(difference));
  }
  for (int64_t i = 0; i < of.rows; ++i) column[i] = values.at(b * of.rows + i, p) - (of.centre ? first + mean : 0.);
  return spread;
}

struct Expected {
  std::vector<double> gram, lengths, other_lengths;  // [rows][rows], [rows]
};
template <class G>
Expected expected_of(const Matrix<G>& x, const Matrix<G>& y, const GramCase& of, int64_t b, const Chunk& chunk) {
  const int64_t rows = of.rows;
  Expected e = {std::vector<double>(rows * rows), std::vector<double>(rows), std::vector<double>(rows)};
  std::vector<double> a(rows), c(rows);
  for (int64_t p = chunk.begin; p < chunk.end; ++p) {
    const double spread = column_of(x, of, b, p, a), other_spread = column_of(y, of, b, p, c);
    for (int64_t i = 0; i < rows; ++i) {
      e.lengths[i] += a[i] * a[i] + spread * spread, e.other_lengths[i] += c[i] * c[i] + other_spread * other_spread;
      for (int64_t j = 0; j < rows; ++j) e.gram[i * rows + j] += a[i] * c[j];
    }
  }
  for (double& length : e.lengths) length = std::sqrt(length);
  for (double& length : e.other_lengths) length = std::sqrt(length);
  return e;
}

template <class G>
Gram gram_arguments(const GramCase& of, const Layout& layout, const Matrix<G>& x, const Matrix<G>& y) {
  Gram s = {};
  s.batch = of.batch, s.rows = of.rows, s.num_chunks = int64_t(layout.chunks.size());
  s.values = {x.values.data(), type_of<G>, of.rows * x.row, x.row, nullptr, 0, 0};
  s.cross = of.cross(), s.centre = of.centre, s.diagonal = of.diagonal();
  if (s.cross) s.others = y.values.data(), s.others_row = y.row, s.others_batch_stride = of.rows * y.row;
  s.chunks = layout.chunks.data();
  return s;
}

}  // namespace data
