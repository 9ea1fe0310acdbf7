// The K x K mixes of one call.
#pragma once
#include <memory>
#include <vector>

#include "../core/blend.h"
#include "tensors.h"

namespace mt2o::ops {

// mix: float64 [K, K], or [S, K, K]; segments: S, or -1 for any.  Returns the number of matrices.
inline int64_t check_mix(const Tensor& mix, int64_t rows, int64_t segments) {
  STD_TORCH_CHECK(mix.dim() == 2 || mix.dim() == 3, "mt2o_ext: mix must be [K, K] or [S, K, K]");
  if (mix.dim() == 2)
    check_table(mix, "mix", ScalarType::Double, {rows, rows});
  else
    check_table(mix, "mix", ScalarType::Double, {segments < 0 ? mix.size(0) : segments, rows, rows});
  return mix.dim() == 2 ? 1 : mix.size(0);
}

// A mix in the CPU's form (PackedMix).
class MixBuffer {
 public:
  MixBuffer(const Tensor& mix, int64_t rows, int64_t segments, Type type) : matrices_(check_mix(mix, rows, segments)) {
    type == Type::float64 ? pack(const_data<double>(mix), rows, doubles_)
                          : pack(const_data<double>(mix), rows, floats_);
    values_ = type == Type::float64 ? static_cast<const void*>(doubles_.data()) : floats_.data();
  }
  PackedMix packed() const { return {matrices_, counts_.data(), columns_.data(), values_, identity_.get()}; }
  int64_t matrices() const { return matrices_; }

 private:
  template <class S>
  void pack(const double* mix, int64_t rows, std::vector<S>& values) {
    const int64_t blocks = (rows + mix_block - 1) / mix_block;
    identity_ = std::make_unique<bool[]>(matrices_ * rows);
    std::fill_n(identity_.get(), matrices_ * rows, true);
    counts_.assign(matrices_ * blocks, 0);
    columns_.assign(matrices_ * blocks * rows, 0);
    values.assign(matrices_ * blocks * rows * mix_block, S(0));
    for (int64_t block = 0; block < matrices_ * blocks; ++block) {
      const double* matrix = mix + block / blocks * rows * rows;
      const int64_t k = block % blocks * mix_block;
      for (int64_t j = 1; j < rows; ++j) {
        S* packed = values.data() + (block * rows + counts_[block]) * mix_block;
        bool any = false;
        for (int64_t r = 0; r < std::min<int64_t>(mix_block, rows - k); ++r) {
          packed[r] = coupling<S>(matrix, rows, k + r, j);
          any = any || packed[r] != S(0);
          if (packed[r] != S(0)) identity_[block / blocks * rows + k + r] = false;
        }
        if (any) columns_[block * rows + counts_[block]++] = int32_t(j);
      }
    }
  }

  int64_t matrices_;
  std::vector<int32_t> counts_, columns_;
  std::vector<float> floats_;
  std::vector<double> doubles_;
  std::unique_ptr<bool[]> identity_;
  const void* values_ = nullptr;
};

}  // namespace mt2o::ops
