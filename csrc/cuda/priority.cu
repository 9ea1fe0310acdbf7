#include "../core/priority.h"

#include "combined.cuh"
#include "sums.cuh"

namespace mt2o::cuda {

constexpr int products_at_once = 4;  // of one task with others
constexpr int combine_threads = 256;

// Whose the columns of a record are, for a thread that goes through them in ascending order.
class OwnerOf {
 public:
  __device__ __forceinline__ OwnerOf(const Priority& s, const Chunk& chunk)
      : s_(s), record_(s.records[chunk.segment]), run_{0, chunk.begin}, owner_(-1) {}

  // Where that ends of which column p is a part: columns before have the same owner.
  __device__ __forceinline__ int64_t find(int64_t p) {
    if (p >= run_.end) {
      run_ = run_at(record_, p);
      owner_ = owner_of(s_, record_, run_.channel);
    }
    return run_.end;
  }
  __device__ __forceinline__ int64_t owner() const { return owner_; }
  __device__ __forceinline__ double correction() const { return mt2o::correction(s_, record_, owner_); }

 private:
  const Priority& s_;
  const PriorityRecord record_;
  ChannelRun run_;
  int64_t owner_;
};

// As for_columns; a record may begin anywhere.
template <int V, class Body>
__device__ __forceinline__ void for_record_columns(int64_t begin, int64_t end, Body body) {
  const int64_t aligned = least((begin + V - 1) / V * V, end), p = begin + int64_t(threadIdx.x);
  if (p < aligned) body(Width<1>{}, p);
  for_columns<V>(aligned, end, body);
}

// Products of the gradient of one task, in the columns that it owns, with those of the tasks first .. first + count.
template <class G>
struct OwnProducts {
  const G *own, *others;
  int64_t task_stride;
  int count;

  template <int V>
  __device__ __forceinline__ void add(int64_t p, double (&sum)[products_at_once]) const {
    const Pack<Scalar<G>, V> x = load<V>(own + p);
#pragma unroll
    for (int j = 0; j < products_at_once; ++j) {
      if (j >= count) break;
      const Pack<Scalar<G>, V> y = load<V>(others + j * task_stride + p);
#pragma unroll
      for (int i = 0; i < V; ++i) sum[j] = fma(double(x.of[i]), double(y.of[i]), sum[j]);
    }
  }
};

// A block finds the products of one owner with a few tasks in one chunk at a time.
template <class G>
__global__ void __launch_bounds__(sum_threads, 2) own_products(Priority s, int64_t chunks) {
  auto& shared = block_shared<SumsShared<products_at_once>>();
  const int64_t panels = (s.tasks + products_at_once - 1) / products_at_once, of_chunk = s.tasks * panels;
  for (int64_t unit = blockIdx.x; unit < chunks * of_chunk; unit += gridDim.x) {
    const Chunk chunk = s.chunks[unit / of_chunk];
    if (s.records[chunk.segment].layer < 0) continue;
    const int64_t owner = unit % of_chunk / panels, first = unit % panels * products_at_once;
    const G* grads = static_cast<const G*>(s.grads);
    const OwnProducts<G> products = {grads + owner * s.grads_task, grads + first * s.grads_task, s.grads_task,
                                     int(least(products_at_once, s.tasks - first))};
    OwnerOf columns(s, chunk);
    double sum[products_at_once] = {};
    for_record_columns<wide<G>>(chunk.begin, chunk.end, [&](auto width, int64_t p) {
      constexpr int V = decltype(width)::columns;
      if (columns.find(p) >= p + V) {
        if (columns.owner() == owner) products.template add<V>(p, sum);
        return;
      }
      for (int i = 0; i < V; ++i) {
        columns.find(p + i);
        if (columns.owner() == owner) products.template add<1>(p + i, sum);
      }
    });
    block_sums(sum, shared);
    if (int(threadIdx.x) < products.count)
      s.dots[(unit / of_chunk * s.tasks + owner) * s.tasks + first + threadIdx.x] = shared.total[threadIdx.x];
  }
}

struct LayerShared {
  double dots[max_owners * max_owners];
};

// A block adds up the chunks of one layer, which lie side by side; a warp those of one product: each lane every 32nd of
// them, in order.
__global__ void __launch_bounds__(sum_threads) layer_coefficients(Priority s, int64_t chunks, int64_t layers) {
  auto& shared = block_shared<LayerShared>();
  const int64_t products = s.tasks * s.tasks, lane = threadIdx.x % warp;
  for (int64_t layer = blockIdx.x; layer < layers; layer += gridDim.x) {
    int64_t first = 0, last = 0;
    for (int64_t begin = 0; begin < chunks; begin += sum_threads) {
      const int64_t c = begin + threadIdx.x;
      const int64_t own = c < chunks ? s.records[s.chunks[c].segment].layer : layers;
      first += __syncthreads_count(own < layer), last += __syncthreads_count(own <= layer);
    }
    for (int64_t q = threadIdx.x / warp; q < products; q += sum_threads / warp) {
      double sum = 0.;
      for (int64_t c = first + lane; c < last; c += warp) sum += s.dots[c * products + q];
      sum = warp_sum(sum);
      if (lane == 0) shared.dots[q] = sum;
    }
    __syncthreads();
    for (int64_t owner = threadIdx.x; owner < s.tasks; owner += sum_threads)
      s.coefficients[layer * s.tasks + owner] = conflict_coefficient(shared.dots + owner * s.tasks, s.tasks, owner);
    __syncthreads();  // nobody reads the products any more
  }
}

// V columns of the corrected sum.
template <int V, class G>
__device__ __forceinline__ Pack<Scalar<G>, V> corrected(const Priority& s, const TaskGradients<G, false>& all,
                                                        OwnerOf& columns, int64_t p) {
  using N = Scalar<G>;
  const G* grads = static_cast<const G*>(s.grads) + p;
  Pack<N, V> sum = all.template sum<V>(p);
  if (columns.find(p) >= p + V) {
    if (const double factor = columns.correction(); factor != 0.) {
      const Pack<N, V> own = load<V>(grads + columns.owner() * s.grads_task);
#pragma unroll
      for (int i = 0; i < V; ++i) sum.of[i] = fma(N(factor), own.of[i], sum.of[i]);
    }
    return sum;
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    columns.find(p + i);
    if (const double factor = columns.correction(); factor != 0.)
      sum.of[i] = fma(N(factor), widened(grads[columns.owner() * s.grads_task + i]), sum.of[i]);
  }
  return sum;
}

// A block takes one part; backwards: what the products were found of last is still in the cache.
template <class G, class O>
__global__ void __launch_bounds__(combine_threads) corrected_sum(Priority s, Parts parts) {
  const Chunk part = parts[int64_t(gridDim.x - 1 - blockIdx.x)];
  const Gradients grads = {s.grads, s.grads_type, 0, s.grads_task, nullptr, 0, 0};
  const TaskGradients<G, false> all(grads, nullptr, s.tasks, 0, 0, 0);
  OwnerOf columns(s, part);
  for_record_columns<wide<G>>(part.begin, part.end, [&](auto width, int64_t p) {
    store_whole(static_cast<O*>(s.out) + p, corrected<decltype(width)::columns, G>(s, all, columns, p));
  });
}

Problem priority(const Priority& s, int64_t layers, Extent extent, Stream stream) {
  Problem problem = nullptr;
  if (extent.chunks > 0) {
    const int64_t panels = (s.tasks + products_at_once - 1) / products_at_once;
    with_type(s.grads_type, [&](auto grads) {
      using G = typename decltype(grads)::type;
      problem = launch_units(own_products<G>, extent.chunks * s.tasks * panels, sum_threads, stream, s, extent.chunks);
    });
  }
  if (!problem && layers > 0)
    problem = launch_units(layer_coefficients, layers, sum_threads, stream, s, extent.chunks, layers);
  if (problem || extent.chunks == 0 || extent.columns == 0) return problem;
  with_type(s.grads_type, [&](auto grads) {
    using G = typename decltype(grads)::type;
    const auto kernel = s.out_type == s.grads_type ? corrected_sum<G, G> : corrected_sum<G, Scalar<G>>;
    problem = launch_parts(kernel, {1, 1, combine_threads, part_columns(sizeof(G))}, s.chunks, extent, stream, s);
  });
  return problem;
}

}  // namespace mt2o::cuda
