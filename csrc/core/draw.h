// Random numbers that are functions of a key, a stream and ids: of what they are for, and not of who draws them.
#pragma once
#include "config.h"

namespace mt2o {

// SplitMix64 (Steele, Lea and Flood 2014): the numbers of mt2o_ext/ops/draw.py.
MT2O_HD uint64_t mixed_bits(uint64_t bits) {
  bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9u;
  bits = (bits ^ bits >> 27) * 0x94D049BB133111EBu;
  return bits ^ bits >> 31;
}
constexpr uint64_t golden = 0x9E3779B97F4A7C15u;
MT2O_HD uint64_t with_stream(int64_t key, int64_t stream) {
  return mixed_bits(uint64_t(key) + golden * (uint64_t(stream) + 1));
}
MT2O_HD uint64_t with_id(uint64_t bits, int64_t id) { return mixed_bits((uint64_t(id) + 1) * golden + bits); }
// In (0, 1), never 0 or 1.
MT2O_HD double uniform(uint64_t bits) { return (double(int64_t(bits >> 12)) + 0.5) * 0x1p-52; }

constexpr int64_t max_draw_dims = 4, max_draw_ids = 4;

// numbers[i] for every index i of a contiguous tensor: 64 random bits, or a double in (0, 1).
struct Draws {
  int64_t dims, sizes[max_draw_dims], count;
  int64_t num_ids;
  const int64_t* ids[max_draw_ids];
  int64_t strides[max_draw_ids][max_draw_dims];
  const int64_t* key;
  int64_t stream;
  void* numbers;
  bool as_bits;
};

MT2O_HD void draw_number(const Draws& s, int64_t i) {
  uint64_t bits = with_stream(*s.key, s.stream);
  for (int64_t id = 0; id < s.num_ids; ++id) {
    int64_t at = 0, rest = i;
    for (int64_t d = s.dims; d-- > 0; rest /= s.sizes[d]) at += rest % s.sizes[d] * s.strides[id][d];
    bits = with_id(bits, s.ids[id][at]);
  }
  if (s.as_bits)
    static_cast<int64_t*>(s.numbers)[i] = int64_t(bits);
  else
    static_cast<double*>(s.numbers)[i] = uniform(bits);
}

}  // namespace mt2o
