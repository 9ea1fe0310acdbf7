#include "../core/draw.h"

#include "columns.cuh"

namespace mt2o::cuda {

constexpr int threads = 128;

__global__ void __launch_bounds__(threads) draw_numbers(Draws s) {
  for (int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x; i < s.count; i += int64_t(gridDim.x) * threads)
    draw_number(s, i);
}

Problem draw(const Draws& s, Stream stream) {
  if (s.count == 0) return nullptr;
  return launch_units(draw_numbers, (s.count + threads - 1) / threads, threads, stream, s);
}

}  // namespace mt2o::cuda
