// Masks of tasks, one bit for each column and task: which columns of a task's gradient count, and which of a row move.
#pragma once
#include "arguments.h"

namespace mt2o {

// Those of `columns` neighbouring columns from p on, p a multiple of 8 or all of them in one byte; the first in the
// lowest bit.  At most 16; bytes behind the last column are not read, but bits behind it may be anything.
MT2O_HD uint32_t bits_at(const uint8_t* mask, int64_t p, int64_t columns) {
  const uint32_t low = uint32_t(mask[p / 8]) >> (p % 8);
  return p % 8 + columns > 8 ? low | uint32_t(mask[p / 8 + 1]) << 8 : low;
}

// The masks of one segment.
struct SegmentMasks {
  const uint8_t* bits;
  int64_t row, tasks;
  bool whole, hold;

  MT2O_HD_MEMBER SegmentMasks(const Masks& masks, int64_t tasks, int64_t segment)
      : bits(masks.bits),
        row(masks.row),
        tasks(tasks),
        whole(masks.whole != nullptr && masks.whole[segment]),
        hold(masks.hold) {}

  MT2O_HD_MEMBER uint32_t of(int64_t task, int64_t p, int64_t columns) const {
    return bits_at(bits + task * row, p, columns);
  }
  // Columns of the gradient of a task that count.
  MT2O_HD_MEMBER uint32_t counted(int64_t task, int64_t p, int64_t columns) const {
    return whole ? ~0u : of(task, p, columns);
  }
  // Columns of the parameters that move: those of any task.
  MT2O_HD_MEMBER uint32_t moved(int64_t p, int64_t columns) const {
    uint32_t any = 0;
    for (int64_t t = 0; t < tasks; ++t) any |= of(t, p, columns);
    return any;
  }
};

}  // namespace mt2o
