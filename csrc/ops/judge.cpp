#include "judge.h"

namespace mt2o::ops {
namespace {

void gather_all(Losses& s, const Tensors& scalars) {
  for (bool more = true; more;) {
    more = take_scalars(s, scalars);
    judge::gather(s, 0, int64_t(scalars.size()), 0, 1);
  }
}

// The lanes of a few neighbouring entries at a time, so that memory is read in order.
void add_up(const Judge& s, int64_t row) {
  constexpr int64_t width = 16;
  const int64_t entries = judge::entries(s);
  for (int64_t begin = 0; begin < entries; begin += width) {
    const int64_t end = std::min(begin + width, entries);
    double lanes[judge::lanes][width] = {};
    for (int64_t segment = 0; segment < s.segments; ++segment)
      for (int64_t e = begin; e < end; ++e)
        lanes[segment % judge::lanes][e - begin] += judge::term(s, row, segment, e);
    for (int64_t e = begin; e < end; ++e) {
      double sum = 0.;
      for (const auto& lane : lanes) sum += lane[e - begin];
      s.sums[row * entries + e] = sum;
    }
  }
}

void judge_(Tensor found, Tensor flags, MaybeTensor losses, MaybeTensor sums, MaybeTensor filled,
            MaybeTensor usable_losses, MaybeTensor largest, Tensors scalars, MaybeTensor grams, MaybeTensor factor,
            MaybeTensor before, MaybeTensor outside, double limit, bool together) {
  Judge s = judge_arguments(
      {found, flags, losses, sums, filled, usable_losses, largest, scalars, grams, factor, before, outside}, limit,
      together);
  gather_all(s.losses, scalars);
  for (int64_t k = 0; k < s.rows; ++k) {
    add_up(s, k);
    judge::find(s, k, judge::is_good(s, k, 0, 1));
  }
  for (int64_t k = 0; k < s.rows; ++k) {
    judge::mark(s, k);
    for (int64_t i = 0; s.filled && i < s.tasks * s.tasks; ++i) judge::fill_square(s, k, i);
    for (int64_t t = 0; t < s.tasks; ++t) judge::fill_task(s, k, t);
  }
}

void settle_(Tensor weights, Tensor applied, Tensor flags, Tensor refusals, Tensor found, MaybeTensor losses, Tensor raw,
             Tensors scalars, MaybeTensor judged, MaybeTensor before, MaybeTensor outside, MaybeTensor largest,
             int64_t tasks, double limit, int64_t offset) {
  Settle s = settle_arguments(
      {weights, applied, flags, refusals, found, losses, raw, scalars, judged, before, outside, largest}, tasks, limit,
      offset);
  gather_all(s.losses, scalars);
  for (int64_t k = 0; k < s.rows; ++k) {
    const int64_t unusable = judge::first_unusable(s, k, 0, 1);
    const judge::Outcome is = judge::outcome(s, k, judge::losses_are_good(s, k, 0, 1), unusable);
    judge::tell(s, k, is, unusable);
    for (int64_t i = 0; i < s.count; ++i) judge::apply(s, k, is, i);
  }
}

void count_(Tensor counts, MaybeTensor table, Tensor found, MaybeTensor refusals, MaybeTensor weights,
            MaybeTensor finite, int64_t offset, bool together, bool expected) {
  const Count s = count_arguments({counts, table, found, refusals, weights, finite}, offset, together, expected);
  for (int64_t k = 0; k < s.rows; ++k) judge::count(s, k);
}

}  // namespace
}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) {
  m.impl("judge_", TORCH_BOX(&mt2o::ops::judge_));
  m.impl("settle_", TORCH_BOX(&mt2o::ops::settle_));
  m.impl("count_", TORCH_BOX(&mt2o::ops::count_));
}
