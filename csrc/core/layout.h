// Where every tensor lies in a flat row, and the pieces ("chunks") that the kernels walk through.  Host only.
//
// A segment is one tensor.  It begins at a multiple of 16 columns (64 bytes of float), so that the kernels need a
// scalar path for the tail of a segment only.  A chunk never crosses a segment, and chunks depend on the sizes alone:
// partial sums over chunks are therefore the same for any number of threads.
#pragma once
#include <algorithm>
#include <vector>

#include "arguments.h"

namespace mt2o {

struct Layout {
  std::vector<int64_t> offsets;  // first column of each segment
  int64_t row = 0;               // distance in elements between two rows
  std::vector<Chunk> chunks;     // in ascending order
};

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Long enough to make a partial sum cheap, short enough to give a small model's threads equal shares.
inline int64_t chunk_columns(int64_t columns) { return std::clamp<int64_t>(round_up(columns / 64, 2048), 2048, 16384); }

inline Layout plan_layout(const std::vector<int64_t>& numels) {
  Layout layout;
  for (const int64_t numel : numels) {
    layout.offsets.push_back(layout.row);
    layout.row += round_up(numel, alignment);
  }
  // Rows a multiple of a page apart would compete for the same cache sets.
  if (layout.row > 0 && layout.row % 1024 == 0) layout.row += alignment;
  const int64_t step = chunk_columns(layout.row);
  for (size_t segment = 0; segment < numels.size(); ++segment) {
    const int64_t begin = layout.offsets[segment], end = begin + numels[segment];
    for (int64_t at = begin; at < end; at += step)
      layout.chunks.push_back({int64_t(segment), at, std::min(at + step, end)});
  }
  return layout;
}

}  // namespace mt2o
