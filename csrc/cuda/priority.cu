#include "../core/priority.h"

#include "combined.cuh"
#include "sums.cuh"

namespace mt2o::cuda {

constexpr int few_tasks = 5;         // the sums of all their products are held by every thread
constexpr int products_at_once = 4;  // of one task with others, where there are more
constexpr int combine_threads = 256;

// Quotients of numbers below 2^53 by the same one, without the division of integers that a GPU does not have.
struct Divisor {
  int64_t by;
  double inverse;

  __device__ __forceinline__ explicit Divisor(int64_t by) : by(by), inverse(1. / double(by)) {}
  __device__ __forceinline__ int64_t quotient(int64_t a) const {
    const int64_t q = int64_t(double(a) * inverse), rest = a - q * by;  // rounded twice: wrong by at most one
    return rest < 0 ? q - 1 : rest >= by ? q + 1 : q;
  }
};

// Whose the columns of a record are, for a thread that goes through them in ascending order.
class OwnerOf {
 public:
  __device__ __forceinline__ OwnerOf(const Priority& s, const Chunk& chunk)
      : s_(s),
        record_(s.records[chunk.segment]),
        length_(record_.length),
        channels_(record_.channels),
        run_{-1, chunk.begin},
        owner_(-1) {}

  // Where that ends of which column p is a part: columns before have the same owner.
  __device__ __forceinline__ int64_t find(int64_t p) {
    if (p >= run_.end) {
      constexpr int64_t few_steps = 256;  // from one column of a thread to its next, where runs are as long as that
      if (run_.channel < 0 || record_.length < few_steps)
        run_ = run_at(p);
      else
        while (p >= run_.end) run_ = run_after(record_, run_);
      owner_ = owner_of(s_, record_, run_.channel);
    }
    return run_.end;
  }
  __device__ __forceinline__ int64_t owner() const { return owner_; }
  __device__ __forceinline__ double correction() const { return mt2o::correction(s_, record_, owner_); }

 private:
  __device__ __forceinline__ ChannelRun run_at(int64_t p) const {  // as mt2o::run_at
    const int64_t run = length_.quotient(p - record_.offset);
    return {run - channels_.quotient(run) * channels_.by, record_.offset + (run + 1) * length_.by};
  }

  const Priority& s_;
  const PriorityRecord record_;
  const Divisor length_, channels_;
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

// The products of few tasks with the owner, each column of which is then read once.
template <class G, int Tasks>
struct AllProducts {
  double sum[Tasks * Tasks] = {};  // [owner][task]

  // Columns first .. first + count of V that belong to this owner.
  template <int V>
  __device__ __forceinline__ void add(const Pack<Scalar<G>, V> (&x)[Tasks], int64_t owner, int first, int count) {
#pragma unroll
    for (int i = 0; i < Tasks; ++i) {
      if (owner != i) continue;
#pragma unroll
      for (int j = 0; j < Tasks; ++j)
#pragma unroll
        for (int c = 0; c < V; ++c)
          if (c >= first && c < first + count)
            sum[i * Tasks + j] = fma(double(x[i].of[c]), double(x[j].of[c]), sum[i * Tasks + j]);
    }
  }
};

// A block finds the products of all owners with all tasks in one chunk at a time.
template <class G, int Tasks>
__global__ void __launch_bounds__(sum_threads, 2) all_products(Priority s, int64_t chunks) {
  auto& shared = block_shared<SumsShared<Tasks * Tasks>>();
  const G* grads = static_cast<const G*>(s.grads);
  for (int64_t unit = blockIdx.x; unit < chunks; unit += gridDim.x) {
    const Chunk chunk = s.chunks[unit];
    if (s.records[chunk.segment].layer < 0) continue;
    OwnerOf columns(s, chunk);
    AllProducts<G, Tasks> products;
    constexpr int columns_at_once = int(least(wide<G>, Tasks < 4 ? 8 : Tasks < 5 ? 4 : 2));  // what the registers hold
    for_record_columns<columns_at_once>(chunk.begin, chunk.end, [&](auto width, int64_t p) {
      constexpr int V = decltype(width)::columns;
      Pack<Scalar<G>, V> x[Tasks];
#pragma unroll
      for (int j = 0; j < Tasks; ++j) x[j] = load<V>(grads + j * s.grads_task + p);
      // Up to V runs; most often one.
      for (int first = 0; first < V;) {
        const int count = int(least(columns.find(p + first) - p, V)) - first;
        if (count == V)
          products.template add<V>(x, columns.owner(), 0, V);
        else
          products.template add<V>(x, columns.owner(), first, count);
        first += count;
      }
    });
    block_sums(products.sum, shared);
    if (int(threadIdx.x) < Tasks * Tasks) s.dots[unit * Tasks * Tasks + threadIdx.x] = shared.total[threadIdx.x];
  }
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
__global__ void __launch_bounds__(combine_threads, 3) corrected_sum(Priority s, Parts parts) {
  const Chunk part = parts[int64_t(gridDim.x - 1 - blockIdx.x)];
  const Gradients grads = {s.grads, s.grads_type, 0, s.grads_task, nullptr, 0, 0};
  const TaskGradients<G, false> all(grads, nullptr, s.tasks, 0, 0, 0);
  OwnerOf columns(s, part);
  for_record_columns<wide<G>>(part.begin, part.end, [&](auto width, int64_t p) {
    store_whole(static_cast<O*>(s.out) + p, corrected<decltype(width)::columns, G>(s, all, columns, p));
  });
}

template <class G, int Tasks = 1>
static Problem launch_products(const Priority& s, int64_t chunks, Stream stream) {
  if constexpr (Tasks <= few_tasks) {
    if (s.tasks > Tasks) return launch_products<G, Tasks + 1>(s, chunks, stream);
    return launch_units(all_products<G, Tasks>, chunks, sum_threads, stream, s, chunks);
  } else {
    const int64_t panels = (s.tasks + products_at_once - 1) / products_at_once;
    return launch_units(own_products<G>, chunks * s.tasks * panels, sum_threads, stream, s, chunks);
  }
}

Problem priority(const Priority& s, int64_t layers, Extent extent, Stream stream) {
  Problem problem = nullptr;
  if (extent.chunks > 0) {
    with_type(s.grads_type,
              [&](auto grads) { problem = launch_products<typename decltype(grads)::type>(s, extent.chunks, stream); });
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
