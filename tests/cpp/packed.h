// A K x K mix in the form that the CPU's kernels take (PackedMix in core/arguments.h), packed anew from that
// description.
#pragma once
#include <memory>

#include "data.h"

namespace data {

template <class S>
class Packed {
 public:
  Packed(const std::vector<double>& mixes, int64_t rows) : matrices_(int64_t(mixes.size()) / (rows * rows)) {
    identity_ = std::make_unique<bool[]>(matrices_ * rows);
    for (int64_t k = 0; k < matrices_ * rows; ++k) identity_[k] = is_identity(mixes.data() + k * rows, rows, k % rows);
    for (int64_t matrix = 0; matrix < matrices_; ++matrix)
      for (int64_t k = 0; k < rows; k += mix_block) add_block(mixes.data() + matrix * rows * rows, rows, k);
  }
  PackedMix mix() const { return {matrices_, counts_.data(), columns_.data(), values_.data(), identity_.get()}; }

 private:
  static bool is_identity(const double* row, int64_t rows, int64_t k) {
    bool same = true;
    for (int64_t j = 1; j < rows; ++j) same = same && S(row[j] - (j == k ? 1. : 0.)) == S(0);
    return same;
  }
  void add_block(const double* m, int64_t rows, int64_t first) {
    int32_t count = 0;
    std::vector<int32_t> columns(rows);
    std::vector<S> values(rows * mix_block);
    for (int64_t j = 1; j < rows; ++j) {
      bool used = false;
      S* column = values.data() + count * mix_block;
      for (int64_t r = 0; r < mix_block; ++r) {
        const int64_t k = first + r;
        column[r] = k < rows ? S(m[k * rows + j] - (k == j ? 1. : 0.)) : S(0);
        used = used || column[r] != S(0);
      }
      if (used) columns[count++] = int32_t(j);
    }
    counts_.push_back(count);
    columns_.insert(columns_.end(), columns.begin(), columns.end());
    values_.insert(values_.end(), values.begin(), values.end());
  }

  int64_t matrices_;
  std::vector<int32_t> counts_, columns_;
  std::vector<S> values_;
  std::unique_ptr<bool[]> identity_;
};

}  // namespace data
