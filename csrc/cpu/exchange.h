// Bits that change places, on the CPU: a task for each thread, two passes over its scores that count digits of sixteen
// bits, and a third that changes bits in order, so that of equal scores the first ones are taken.
#pragma once
#include <numeric>
#include <vector>

#include "../core/arguments.h"
#include "../core/exchange.h"

namespace mt2o::cpu {

// body(column, 0 for what the mask has and 1 for the rest, its key without the column) for all columns of a task.
template <class Body>
inline void for_scores(const Exchange& s, int64_t task, Body body) {
  const uint8_t* mask = s.masks + task * s.masks_row;
  const float* scores = s.scores + task * s.scores_row;
  for (const Chunk* c = s.chunks; c != s.chunks + s.num_chunks; ++c)
    for (int64_t p = c->begin; p < c->end; p += 8) {
      const uint32_t bits = mask[p / 8], n = uint32_t(least(8, c->end - p));
      for (uint32_t i = 0; i < n; ++i) {
        const uint32_t inside = bits >> i & 1;
        body(p + i, 1 - inside, uint32_t(exchange_key(scores[p + i], inside != 0, 0) >> 32));
      }
    }
}

// Where the digit lies at which `left` numbers are complete; left becomes those that are still to be found in it.
inline uint32_t digit_at(const uint32_t* counts, int64_t& left) {
  uint32_t digit = 0;
  while (int64_t(counts[digit]) < left) left -= counts[digit++];
  return digit;
}

inline void exchange(const Exchange& s, int64_t task) {
  constexpr int64_t digits = 1 << 16;
  std::vector<uint32_t> counts(2 * digits, 0);  // of fewer than 2^32 columns
  for_scores(s, task, [&](int64_t, uint32_t kind, uint32_t key) { ++counts[kind * digits + (key >> 16)]; });
  const int64_t total[2] = {std::accumulate(counts.begin(), counts.begin() + digits, int64_t(0)),
                            std::accumulate(counts.begin() + digits, counts.end(), int64_t(0))};
  const int64_t amount = least(s.amount, least(total[0], total[1]));
  if (amount == 0) return;
  int64_t left[2] = {amount, amount};
  uint32_t limit[2];
  for (int d = 0; d < 2; ++d) limit[d] = digit_at(counts.data() + d * digits, left[d]) << 16;
  counts.assign(2 * digits, 0);
  for_scores(s, task, [&](int64_t, uint32_t kind, uint32_t key) {
    if (key >> 16 == limit[kind] >> 16) ++counts[kind * digits + (key & 0xffff)];
  });
  for (int d = 0; d < 2; ++d) limit[d] |= digit_at(counts.data() + d * digits, left[d]);
  uint8_t* mask = s.masks + task * s.masks_row;
  for_scores(s, task, [&](int64_t p, uint32_t kind, uint32_t key) {
    if (key <= limit[kind] && (key < limit[kind] || left[kind]-- > 0)) mask[p / 8] ^= uint8_t(1 << p % 8);
  });
}

}  // namespace mt2o::cpu
