// Family `judge` on the CPU: few numbers, one thread.
#pragma once
#include "../core/judge.h"

namespace mt2o::cpu {

// The lanes of a few neighbouring entries at a time, so that memory is read in order.
inline void add_up(const Judge& s, int64_t row) {
  constexpr int64_t width = 16;
  const int64_t entries = judge::entries(s);
  for (int64_t begin = 0; begin < entries; begin += width) {
    const int64_t end = least(begin + width, entries);
    double lanes[judge::lanes][width] = {};
    for (int64_t segment = 0; segment < s.segments; ++segment)
      for (int64_t e = begin; e < end; ++e) lanes[segment % judge::lanes][e - begin] += judge::term(s, row, segment, e);
    for (int64_t e = begin; e < end; ++e) {
      double sum = 0.;
      for (const auto& lane : lanes) sum += lane[e - begin];
      s.sums[row * entries + e] = sum;
    }
  }
}

inline void judge(const Judge& s) {
  judge::gather(s.losses, 0, s.rows * s.tasks, 0, 1);
  for (int64_t k = 0; k < s.rows; ++k) {
    add_up(s, k);
    judge::find(s, k, judge::is_good(s, k, 0, 1));
  }
  for (int64_t k = 0; k < s.rows; ++k) {
    judge::mark(s, k);
    for (int64_t i = 0; s.filled != nullptr && i < s.tasks * s.tasks; ++i) judge::fill_square(s, k, i);
    for (int64_t t = 0; t < s.tasks; ++t) judge::fill_task(s, k, t);
  }
}

inline void settle(const Settle& s) {
  judge::gather(s.losses, 0, s.rows * s.tasks, 0, 1);
  for (int64_t k = 0; k < s.rows; ++k) {
    const int64_t unusable = judge::first_unusable(s, k, 0, 1);
    const judge::Outcome is = judge::outcome(s, k, judge::losses_are_good(s, k, 0, 1), unusable);
    judge::tell(s, k, is, unusable);
    for (int64_t i = 0; i < s.count; ++i) judge::apply(s, k, is, i);
  }
}

inline void count(const Count& s) {
  for (int64_t k = 0; k < s.rows; ++k) judge::count(s, k);
}

}  // namespace mt2o::cpu
