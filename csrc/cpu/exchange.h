// Bits that change places, on the CPU: a task for each thread, two passes over its scores that count digits of sixteen
// bits, and a third that changes bits in order, so that of equal scores the first ones are taken.
#pragma once
#include <vector>

#include "../core/arguments.h"
#include "../core/exchange.h"

namespace mt2o::cpu {

// body(column, whether the mask has it, its key without the column) for all columns of a task.
template <class Body>
inline void for_scores(const Exchange& s, int64_t task, Body body) {
  const uint8_t* mask = s.masks + task * s.masks_row;
  const float* scores = s.scores + task * s.scores_row;
  for (const Chunk* c = s.chunks; c != s.chunks + s.num_chunks; ++c)
    for (int64_t p = c->begin; p < c->end; ++p) {
      const bool inside = (mask[p / 8] >> (p % 8) & 1) != 0;
      body(p, inside, uint32_t(exchange_key(scores[p], inside, 0) >> 32));
    }
}

// Where the digit lies at which `left` numbers are complete; left becomes those that are still to be found in it.
inline uint32_t digit_at(const int64_t* counts, int64_t& left) {
  uint32_t digit = 0;
  while (counts[digit] < left) left -= counts[digit++];
  return digit;
}

inline void exchange(const Exchange& s, int64_t task) {
  constexpr int64_t digits = 1 << 16;
  std::vector<int64_t> counts(2 * digits, 0);
  int64_t total[2] = {0, 0};
  for_scores(s, task, [&](int64_t, bool inside, uint32_t key) {
    ++counts[(inside ? 0 : digits) + (key >> 16)], ++total[inside ? 0 : 1];
  });
  const int64_t amount = least(s.amount, least(total[0], total[1]));
  if (amount == 0) return;
  int64_t left[2] = {amount, amount};
  uint32_t limit[2];
  for (int d = 0; d < 2; ++d) limit[d] = digit_at(counts.data() + d * digits, left[d]) << 16;
  counts.assign(2 * digits, 0);
  for_scores(s, task, [&](int64_t, bool inside, uint32_t key) {
    const int d = inside ? 0 : 1;
    if (key >> 16 == limit[d] >> 16) ++counts[d * digits + (key & 0xffff)];
  });
  for (int d = 0; d < 2; ++d) limit[d] |= digit_at(counts.data() + d * digits, left[d]);
  uint8_t* mask = s.masks + task * s.masks_row;
  for_scores(s, task, [&](int64_t p, bool inside, uint32_t key) {
    const int d = inside ? 0 : 1;
    if (key < limit[d] || (key == limit[d] && left[d]-- > 0)) mask[p / 8] ^= uint8_t(1 << p % 8);
  });
}

}  // namespace mt2o::cpu
