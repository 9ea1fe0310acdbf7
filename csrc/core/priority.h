// The priority rule of connection strength (Jeong & Yoon, CVPR 2024, Algorithm 1): which task owns a column, and how
// much of the owner's gradient corrects the sum of all.
//
// G_j is the gradient of task j, as one vector over all channels of a layer that task i owns.  Taking from every G_j
// that conflicts with G_i its part along G_i, and adding up, is the same as
//   sum_j G_j + c_i G_i,    c_i = sum_{j != i} max(0, -<G_i, G_j>) / |G_i|^2    (0 where G_i is zero).
#pragma once
#include "arguments.h"

namespace mt2o {

// The part of a record that belongs to one channel without a gap: it ends before column `end`.
struct ChannelRun {
  int64_t channel, end;
};
MT2O_HD ChannelRun run_at(const PriorityRecord& record, int64_t p) {
  const int64_t run = (p - record.offset) / record.length;
  return {run % record.channels, record.offset + (run + 1) * record.length};
}
MT2O_HD ChannelRun run_after(const PriorityRecord& record, ChannelRun run) {
  return {run.channel + 1 < record.channels ? run.channel + 1 : 0, run.end + record.length};
}

// The task that owns a channel, -1: none.
MT2O_HD int64_t owner_of(const Priority& s, const PriorityRecord& record, int64_t channel) {
  const int64_t owner = record.layer < 0 ? -1 : s.owners[record.first_channel + channel];
  return owner < s.tasks ? owner : -1;
}

// c_i from <G_i, G_j> for all j; j = owner: |G_i|^2.  A NaN makes no conflict.
MT2O_HD double conflict_coefficient(const double* dots, int64_t tasks, int64_t owner) {
  double c = 0.;
  if (dots[owner] > 0.)
    for (int64_t j = 0; j < tasks; ++j)
      if (j != owner && dots[j] < 0.) c -= dots[j] / dots[owner];
  return c;
}

// c_i of one layer, from the sums over its chunks, which are added in order.
MT2O_HD double layer_coefficient(const Priority& s, int64_t owner, int64_t first_chunk, int64_t last_chunk) {
  double dots[max_owners];
  for (int64_t j = 0; j < s.tasks; ++j) {
    dots[j] = 0.;
    for (int64_t c = first_chunk; c < last_chunk; ++c) dots[j] += s.dots[(c * s.tasks + owner) * s.tasks + j];
  }
  return conflict_coefficient(dots, s.tasks, owner);
}

// c_i as a kernel adds it: nothing where there is no owner, or no conflict (then the sum keeps its bits).
MT2O_HD double correction(const Priority& s, const PriorityRecord& record, int64_t owner) {
  return owner < 0 ? 0. : s.coefficients[record.layer * s.tasks + owner];
}

}  // namespace mt2o
