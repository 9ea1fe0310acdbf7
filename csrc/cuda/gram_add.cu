// The second stage of `gram`: sums of chunks become sums of segments.
#include "gram.cuh"

namespace mt2o::cuda {

// A block adds up some neighbouring sums of one segment: so many threads, next to one another in memory, take a chunk,
// and the others the chunks behind it; each thread asks for many of them at once.  Order and tree are fixed.
constexpr int sums_at_once = 8, chunks_at_once = gram_threads / sums_at_once, loads_at_once = 12;

// The chunks of a segment lie between two of them.
struct Between {
  int64_t first, last;
};
struct AddShared {
  Between of_warp[gram_threads / warp];
  double sums[gram_threads / warp][sums_at_once];
};

__device__ __forceinline__ Between both(Between a, Between b) {
  return {least(a.first, b.first), a.last < b.last ? b.last : a.last};
}
__device__ __forceinline__ Between find_chunks(const Gram& s, int64_t segment, AddShared& shared) {
  Between found = {s.num_chunks, 0};
#pragma unroll 4
  for (int64_t c = threadIdx.x; c < s.num_chunks; c += gram_threads)
    if (s.chunks[c].segment == segment) found = both(found, {c, c + 1});
#pragma unroll
  for (int distance = warp / 2; distance > 0; distance /= 2)
    found = both(found, {__shfl_xor_sync(0xffffffffu, found.first, distance),
                         __shfl_xor_sync(0xffffffffu, found.last, distance)});
  if (threadIdx.x % warp == 0) shared.of_warp[threadIdx.x / warp] = found;
  __syncthreads();
#pragma unroll 1
  for (const Between& other : shared.of_warp) found = both(found, other);
  return found;
}

// Left to itself, the compiler saves registers, and lets each load wait for the one before.
__global__ void __launch_bounds__(gram_threads, 3) add_chunks(Gram s, int64_t segments, int64_t tiles, double* all) {
  auto& shared = block_shared<AddShared>();
  const int64_t sums = gram_sums(s), size = s.diagonal ? s.rows : s.rows * s.rows;
  const int thread = int(threadIdx.x);
  for (int64_t unit = blockIdx.x; unit < s.batch * segments * tiles; unit += gridDim.x) {
    const int64_t matrix = unit / tiles, batch = matrix / segments, segment = matrix % segments;
    const int64_t begin = unit % tiles * sums_at_once, q = begin + thread % sums_at_once;
    const Between chunks = find_chunks(s, segment, shared);
    const double* const partials = s.partials + batch * s.num_chunks * sums + least(q, sums - 1);
    double sum = 0.;
    for (int64_t c = chunks.first + thread / sums_at_once; c < chunks.last; c += chunks_at_once * loads_at_once) {
      int of_segment[loads_at_once];
      double x[loads_at_once];
#pragma unroll
      for (int k = 0; k < loads_at_once; ++k) {  // without a branch, so that no load waits for another
        const int64_t at = least(c + k * chunks_at_once, chunks.last - 1);
        of_segment[k] = int(s.chunks[at].segment), x[k] = partials[at * sums];
      }
#pragma unroll
      for (int k = 0; k < loads_at_once; ++k) {
        const bool mine = c + k * chunks_at_once < chunks.last && of_segment[k] == int(segment);
        sum = sum + (mine ? x[k] : 0.);
      }
    }
#pragma unroll
    for (int distance = warp / 2; distance >= sums_at_once; distance /= 2)
      sum = sum + __shfl_xor_sync(0xffffffffu, sum, distance);
    if (thread % warp < sums_at_once) shared.sums[thread / warp][thread % warp] = sum;
    __syncthreads();
    if (thread >= sums_at_once || q >= sums) continue;
    double total = 0.;
    for (const auto& of_warp : shared.sums) total = total + of_warp[thread];
    double* const gram = all + matrix * size;
    if (s.diagonal || s.cross) {
      gram[q] = total;
    } else {
      int64_t i = 0;
      while (gram_pair(i + 1, 0) <= q) ++i;
      const int64_t j = q - gram_pair(i, 0);
      gram[i * s.rows + j] = gram[j * s.rows + i] = total;
    }
  }
}

struct MeansShared {
  double of_rows[max_rows], of_others[max_rows], of_all;
};
// From products of differences to row 0 to those of rows less their mean: D_ij less the means of its row and column,
// plus the mean of all.  A block takes one matrix.
__global__ void __launch_bounds__(gram_threads) centre_products(Gram s, int64_t segments, double* all) {
  auto& means = block_shared<MeansShared>();
  const int rows = int(s.rows);
  for (int64_t unit = blockIdx.x; unit < s.batch * segments; unit += gridDim.x) {
    double* const gram = all + unit * rows * rows;
    __syncthreads();  // nobody reads the means of another matrix
    for (int i = int(threadIdx.x); i < rows; i += gram_threads) {
      double of_row = 0., of_other = 0.;
      for (int j = 0; j < rows; ++j) of_row += gram[i * rows + j], of_other += gram[j * rows + i];
      means.of_rows[i] = of_row / rows, means.of_others[i] = of_other / rows;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      double sum = 0.;
      for (int i = 0; i < rows; ++i) sum += means.of_rows[i];
      means.of_all = sum / rows;
    }
    __syncthreads();
    for (int q = int(threadIdx.x); q < rows * rows; q += gram_threads) {
      const int i = q / rows, j = q % rows;
      if (s.cross)
        gram[q] = gram[q] - means.of_rows[i] - means.of_others[j] + means.of_all;
      else if (j <= i)
        gram[q] = gram[j * rows + i] = gram[q] - means.of_rows[i] - means.of_rows[j] + means.of_all;
    }
  }
}

Problem gram_add(const Gram& s, double* out, int64_t segments, Stream stream) {
  const int64_t tiles = (gram_sums(s) + sums_at_once - 1) / sums_at_once;
  const Problem problem =
      launch_units(add_chunks, s.batch * segments * tiles, gram_threads, stream, s, segments, tiles, out);
  if (problem || !s.centre || s.diagonal) return problem;
  return launch_units(centre_products, s.batch * segments, gram_threads, stream, s, segments, out);
}

}  // namespace mt2o::cuda
