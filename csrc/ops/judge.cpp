#include "judge.h"

#include "../cpu/judge.h"

namespace mt2o::ops {
namespace {

// Gathers all but the last of the scalars, which the next function takes.
void gather_most(Losses& s, const Tensors& scalars) {
  while (take_scalars(s, scalars)) judge::gather(s, s.first, s.first + s.count, 0, 1);
}

void judge_(Tensor found, Tensor flags, MaybeTensor losses, MaybeTensor sums, MaybeTensor filled,
            MaybeTensor usable_losses, MaybeTensor largest, Tensors scalars, MaybeTensor grams, MaybeTensor factor,
            MaybeTensor before, MaybeTensor outside, double limit, bool together) {
  Judge s = judge_arguments(
      {found, flags, losses, sums, filled, usable_losses, largest, scalars, grams, factor, before, outside}, limit,
      together);
  gather_most(s.losses, scalars);
  cpu::judge(s);
}

void settle_(Tensor weights, Tensor applied, Tensor flags, Tensor refusals, Tensor found, MaybeTensor losses,
             Tensor raw, Tensors scalars, MaybeTensor judged, MaybeTensor before, MaybeTensor outside,
             MaybeTensor largest, int64_t tasks, double limit, int64_t offset, double divisor) {
  Settle s = settle_arguments(
      {weights, applied, flags, refusals, found, losses, raw, scalars, judged, before, outside, largest}, tasks, limit,
      offset, divisor);
  gather_most(s.losses, scalars);
  cpu::settle(s);
}

void count_(Tensor counts, MaybeTensor table, Tensor found, MaybeTensor refusals, MaybeTensor weights,
            MaybeTensor finite, int64_t offset, bool together, bool expected) {
  cpu::count(count_arguments({counts, table, found, refusals, weights, finite}, offset, together, expected));
}

}  // namespace
}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) {
  m.impl("judge_", TORCH_BOX(&mt2o::ops::judge_));
  m.impl("settle_", TORCH_BOX(&mt2o::ops::settle_));
  m.impl("count_", TORCH_BOX(&mt2o::ops::count_));
}
