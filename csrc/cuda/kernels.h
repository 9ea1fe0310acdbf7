// The kernel families on a GPU: raw pointers to its memory, sizes, a stream; no torch and no CUDA header.
//
// Each function queues its work on the stream and returns: nothing is allocated, nothing waited for, nothing of the
// device's memory read here, so that all of it can be part of a CUDA graph.  The result is nullptr, or what CUDA says
// went wrong.  Without columns nothing is launched.
#pragma once
#include "../core/arguments.h"
#include "../core/draw.h"
#include "../core/judge.h"
#include "../core/solve/arguments.h"

namespace mt2o::cuda {

using Stream = void*;         // cudaStream_t
using Problem = const char*;  // of static storage

// Chunks of rows of so many columns.
struct Extent {
  int64_t chunks, columns;
};

Problem combine(const Combine&, Extent, Stream);
Problem gram(const Gram&, double* out, int64_t segments, Stream);
Problem finite(const Finite&, Extent, Stream);
Problem transfer(const Transfer&, const DenseMix&, Extent, Stream);  // the packed mix is not looked at
Problem priority(const Priority&, int64_t layers, Extent, Stream);
Problem track(const Track&, Extent, Stream);
Problem feed(const Feed&, Extent, Stream);
Problem excess(const Excess&, double* out, int64_t segments, Stream);  // out: [K][S][T], of the partial sums
Problem drop_signs(const DropSigns&, Extent, Stream);
Problem draw(const Draws&, Stream);
Problem step(const Step&, const StepCounters&, const DenseMix&, Extent, Stream);
Problem mask(const Mask&, Extent, Stream);
Problem harmony(const Harmony&, Extent, Stream);
Problem exchange(const Exchange&, Stream);

Problem judge(const Losses&, Stream);  // gathers them only
Problem judge(const Judge&, Stream);
Problem settle(const Settle&, Stream);
Problem count(const Count&, Stream);

Problem solve(const MinimumNorm&, Stream);
Problem solve(const ConflictAverse&, Stream);
Problem solve(const PowerBarrier&, Stream);
Problem solve(const DualCone&, Stream);
Problem solve(const Eigen&, Stream);
Problem solve(const Project&, Stream);
Problem solve(const Descent&, Stream);

}  // namespace mt2o::cuda
