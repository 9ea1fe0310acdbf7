#include "../core/elements.h"

#include "columns.cuh"
#include "gram.cuh"

namespace mt2o::cuda {

constexpr int threads = 256;

// A block takes one row of one task of one part.
template <class G>
__global__ void __launch_bounds__(threads) track_rows(Track s, Parts parts) {
  using S = Scalar<G>;
  const int64_t k = blockIdx.y, t = blockIdx.z;
  if (!s.of.finite[k]) return;
  const Chunk part = parts[blockIdx.x];
  G* const grads = static_cast<G*>(s.of.grads) + k * s.of.row + t * s.of.task;
  S* const memory = static_cast<S*>(s.memory) + k * s.memory_row + t * s.memory_task;
  const S keep = S(s.keep[k * s.of.tasks + t]), fresh = S(s.fresh[k * s.of.tasks + t]);
  for_columns<wide<G>>(part.begin, part.end, [&](auto width, int64_t p) {
    constexpr int V = decltype(width)::columns;
    const Pack<S, V> gradient = load<V>(grads + p), old = load<V>(memory + p);
    Pack<S, V> now;
#pragma unroll
    for (int i = 0; i < V; ++i) now.of[i] = tracked(old.of[i], gradient.of[i], keep, fresh);
    store_whole(memory + p, now);
    if (s.shown) store_whole(grads + p, now);
  });
}

// A block takes one row of one part.
template <class G>
__global__ void __launch_bounds__(threads) feed_rows(Feed s, Parts parts) {
  using S = Scalar<G>;
  const int64_t k = blockIdx.y;
  if (!s.of.finite[k]) return;
  const Chunk part = parts[blockIdx.x];
  G* const grads = static_cast<G*>(s.of.grads) + k * s.of.row;
  const S* const memory = static_cast<const S*>(s.memory) + k * s.memory_row;
  S* const last = static_cast<S*>(s.last) + k * s.last_row;
  const double* const weights = s.weights + k * s.of.tasks;
  const S now = S(s.now[k]), before = S(s.before[k]), beta = S(s.beta), inverse = S(s.inverse);
  for_columns<wide<G>>(part.begin, part.end, [&](auto width, int64_t p) {
    constexpr int V = decltype(width)::columns;
    Pack<S, V> direction = load<V>(memory + p), given;
    const S first = S(weights[0]);
#pragma unroll
    for (int i = 0; i < V; ++i) direction.of[i] = first * direction.of[i];
#pragma unroll 1
    for (int64_t t = 1; t < s.of.tasks; ++t) {
      const Pack<S, V> moment = load<V>(memory + t * s.memory_task + p);
      const S weight = S(weights[t]);
#pragma unroll
      for (int i = 0; i < V; ++i) direction.of[i] = fma(weight, moment.of[i], direction.of[i]);
    }
    const Pack<S, V> old = load<V>(last + p);
#pragma unroll
    for (int i = 0; i < V; ++i) given.of[i] = fed(direction.of[i], old.of[i], now, before, beta, inverse);
    store_whole(grads + p, given);
    store_whole(last + p, direction);
#pragma unroll
    for (int i = 0; i < V; ++i) given.of[i] = direction.of[i] - direction.of[i];
    for (int64_t t = 1; t < s.of.tasks; ++t) store_whole(grads + t * s.of.task + p, given);
  });
}

// A block takes one row of one task of one chunk, whose sum it writes.
template <class G>
__global__ void __launch_bounds__(sum_threads) excess_chunks(Excess s) {
  using S = Scalar<G>;
  auto& shared = block_shared<SumsShared<1>>();
  for (int64_t unit = blockIdx.x; unit < s.of.rows * s.num_chunks * s.of.tasks; unit += gridDim.x) {
    const int64_t t = unit % s.of.tasks, c = unit / s.of.tasks % s.num_chunks, k = unit / s.of.tasks / s.num_chunks;
    const Chunk chunk = s.of.chunks[c];
    const G* const grads = static_cast<const G*>(s.of.grads) + k * s.of.row + t * s.of.task;
    S* const squares = static_cast<S*>(s.squares) + k * s.squares_row + t * s.squares_task;
    const bool finite = s.of.finite[k];
    double sum[1] = {0.};
    for_columns<wide<G>>(chunk.begin, chunk.end, [&](auto width, int64_t p) {
      constexpr int V = decltype(width)::columns;
      const Pack<S, V> gradient = load<V>(grads + p);
      Pack<S, V> all = load<V>(squares + p);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        double total = double(all.of[i]);
        sum[0] = sum[0] + excess_of(double(gradient.of[i]), total, least_root);
        all.of[i] = S(total);
      }
      if (finite) store_whole(squares + p, all);
    });
    block_sums(sum, shared);
    if (threadIdx.x == 0) s.partials[unit] = shared.total[0];
    __syncthreads();  // nobody writes to the shared sums of another unit
  }
}

// A block takes one row of one part, whose gradients it reads twice.
template <class G>
__global__ void __launch_bounds__(threads) drop_signs_of(DropSigns s, Parts parts) {
  using S = Scalar<G>;
  const int64_t k = blockIdx.y;
  if (!s.of.finite[k]) return;
  const Chunk part = parts[blockIdx.x];
  G* const grads = static_cast<G*>(s.of.grads) + k * s.of.row;
  const uint64_t row = with_id(with_stream(*s.key, s.stream), k);
  for_columns<wide<G>>(part.begin, part.end, [&](auto width, int64_t p) {
    constexpr int V = decltype(width)::columns;
    double sum[V] = {}, size[V] = {};
    S positive[V], negative[V];
    for (int64_t t = 0; t < s.of.tasks; ++t) {
      const Pack<S, V> gradient = load<V>(grads + t * s.of.task + p);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const double x = double(gradient.of[i]);
        sum[i] = sum[i] + x, size[i] = size[i] + max(x, -x);
      }
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const Kept<S> kept = kept_signs(sum[i], size[i], uniform(with_id(row, p + i)), S(s.leak));
      positive[i] = kept.positive, negative[i] = kept.negative;
    }
    for (int64_t t = 0; t < s.of.tasks; ++t) {
      Pack<S, V> gradient = load<V>(grads + t * s.of.task + p);
#pragma unroll
      for (int i = 0; i < V; ++i) gradient.of[i] = times_kept(gradient.of[i], positive[i], negative[i]);
      store_whole(grads + t * s.of.task + p, gradient);
    }
  });
}

// Launches a kernel over the parts of all rows; tasks: blocks of a row.  kernel(Of<G>{}): the one for a type.
template <class Arguments, class Kernel>
static Problem launch_rows(const Arguments& s, int64_t tasks, Extent extent, Stream stream, Kernel kernel) {
  if (extent.chunks == 0 || extent.columns == 0 || s.of.rows * s.of.tasks == 0) return nullptr;
  Problem problem = nullptr;
  with_type(s.of.type, [&](auto type) {
    using G = typename decltype(type)::type;
    problem = launch_parts(kernel(type), {s.of.rows, tasks, threads, part_columns(sizeof(G))}, s.of.chunks, extent,
                           stream, s);
  });
  return problem;
}

Problem track(const Track& s, Extent extent, Stream stream) {
  return launch_rows(s, s.of.tasks, extent, stream,
                     [](auto type) { return track_rows<typename decltype(type)::type>; });
}

Problem feed(const Feed& s, Extent extent, Stream stream) {
  return launch_rows(s, 1, extent, stream, [](auto type) { return feed_rows<typename decltype(type)::type>; });
}

Problem drop_signs(const DropSigns& s, Extent extent, Stream stream) {
  return launch_rows(s, 1, extent, stream, [](auto type) { return drop_signs_of<typename decltype(type)::type>; });
}

Problem excess(const Excess& s, double* out, int64_t segments, Stream stream) {
  if (s.of.rows * s.of.tasks * segments == 0) return nullptr;
  Problem problem = nullptr;
  if (s.num_chunks > 0)
    with_type(s.of.type, [&](auto type) {
      problem = launch_units(excess_chunks<typename decltype(type)::type>, s.of.rows * s.num_chunks * s.of.tasks,
                             sum_threads, stream, s);
    });
  if (problem) return problem;
  Gram sums = {};  // whose partial sums lie as a diagonal's
  sums.batch = s.of.rows, sums.rows = s.of.tasks, sums.num_chunks = s.num_chunks, sums.diagonal = true;
  sums.partials = s.partials, sums.chunks = s.of.chunks;
  return gram_add(sums, out, segments, stream);
}

}  // namespace mt2o::cuda
