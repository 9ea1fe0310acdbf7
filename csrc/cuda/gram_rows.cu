// All pairs of four to sixteen rows of at most 32 bits: a kernel for each number of rows, which has some columns of all
// of them in registers and so reads each row once.
#include <type_traits>

#include "gram.cuh"

namespace mt2o::cuda {

template <class G, int R>
struct RowsShared {
  static constexpr int sums = R * (R + 1) / 2;
  const G* rows[R];
  SumsShared<sums> of;
};

// V columns of a row that nobody writes meanwhile, as they are stored.
template <int V, class G>
__device__ __forceinline__ Pack<G, V> load_constant(const G* from) {
  using Bits = std::conditional_t<V * sizeof(G) == 16, uint4, uint2>;
  Pack<G, V> stored;
  if constexpr (V == 1) {
    stored.of[0] = *in_global_memory(from);
  } else {
    static_assert(sizeof(Bits) == sizeof stored);
    const Bits bits = __ldg(reinterpret_cast<const Bits*>(from));
    __builtin_memcpy(&stored, &bits, sizeof bits);
  }
  return stored;
}

// V columns from p on.  All loads come first.  volatile: the compiler would move the addresses of all rows out of the
// loop, and then has no registers left for them.
template <int V, class G, int R>
__device__ __forceinline__ void add_columns(const G* const volatile (&rows)[R], int64_t p, bool centre,
                                            float (&sum)[R * (R + 1) / 2]) {
  Pack<G, V> stored[R];
#pragma unroll
  for (int r = 0; r < R; ++r) stored[r] = load_constant<V>(rows[r] + p);
#pragma unroll
  for (int c = 0; c < V; ++c) {
    float x[R];
#pragma unroll
    for (int r = 0; r < R; ++r) x[r] = widened(stored[r].of[c]);
    if (centre)
#pragma unroll
      for (int r = R - 1; r >= 0; --r) x[r] = x[r] - x[0];
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
      for (int j = 0; j <= i; ++j) sum[i * (i + 1) / 2 + j] = fma(x[i], x[j], sum[i * (i + 1) / 2 + j]);
  }
}

// Where the rows of a chunk lie, for all threads of the block; the result has a bit for each row that is there.  One
// that is not borrows the columns of another, which costs less than to ask for it at each column: its sums are not
// written.
template <class G, int R>
__device__ __forceinline__ unsigned find_rows(const ChunkOfRows<G>& of, const G* (&rows)[R]) {
  const RowGradients<G> values(of.s.values, of.batch, of.chunk.segment, of.chunk.begin, of.apart);
  const int thread = int(threadIdx.x), lane = thread % warp;
  if (thread < R) rows[thread] = values[thread];
  __syncthreads();
  const unsigned there = __ballot_sync(0xffffffffu, lane < R && rows[lane < R ? lane : 0] != nullptr);
  if (there == (1u << R) - 1) return there;
  int first = 0;
  while (first + 1 < R && (there >> first & 1) == 0) ++first;
  const G* const lent = rows[first];
  __syncthreads();
  if (thread < R && (there >> thread & 1) == 0) rows[thread] = lent;
  __syncthreads();
  return there;
}

// Calls body(width, p) for the columns of the chunk that belong to this thread.
template <class G, class Body>
__device__ __forceinline__ void for_own_columns(int64_t columns, Body body) {
  constexpr int V = gram_columns<G>;
  const int64_t whole = columns / V * V, rest = whole + int64_t(threadIdx.x);
#pragma unroll 1  // the sums of one round of all rows fill the registers
  for (int64_t p = int64_t(threadIdx.x) * V; p < whole; p += gram_threads * V) body(Width<V>{}, p);
  if (rest < columns) body(Width<1>{}, rest);
}

// Rows whose squares are out of the range of float.
template <class G, int R>
struct FarRows {
  const ChunkOfRows<G>& of;
  const G* const volatile (&rows)[R];
  unsigned there;  // a bit for each row
  SumsShared<R*(R + 1) / 2>& shared;

  template <int V>
  __device__ __forceinline__ Pack<float, V> at(int row, int64_t p) const {
    if ((there >> row & 1) == 0) return {};
    const Pack<G, V> stored = load_constant<V>(rows[row] + p);
    const Pack<G, V> origin = of.s.centre ? load_constant<V>(rows[0] + p) : Pack<G, V>{};
    Pack<float, V> x;
#pragma unroll
    for (int c = 0; c < V; ++c) x.of[c] = widened(stored.of[c]) - widened(origin.of[c]);
    return x;
  }
  // Whether a row has other numbers than zero, whose squares are zero as well.
  __device__ __forceinline__ bool any(int row) const {
    bool found = false;
    for_own_columns<G>(of.chunk.end - of.chunk.begin, [&](auto width, int64_t p) {
      constexpr int V = decltype(width)::columns;
      const Pack<float, V> x = at<V>(row, p);
#pragma unroll
      for (int c = 0; c < V; ++c) found = found || x.of[c] != 0.f;
    });
    return __syncthreads_or(found) != 0;
  }
  // All pairs of which one is in `far`, in double.
  __device__ __forceinline__ void sum(unsigned far) const {
#pragma unroll 1
    for (int i = 0; i < R; ++i)
#pragma unroll 1
      for (int first = 0; first <= i; first += 2) {
        if ((far >> i & 1) == 0 && (far >> first & 3) == 0) continue;
        double sum[2] = {};
        for_own_columns<G>(of.chunk.end - of.chunk.begin, [&](auto width, int64_t p) {
          constexpr int V = decltype(width)::columns;
          const Pack<float, V> x = at<V>(i, p), y = at<V>(first, p), z = at<V>(first + 1 < R ? first + 1 : first, p);
#pragma unroll
          for (int c = 0; c < V; ++c) {
            sum[0] = fma(double(x.of[c]), double(y.of[c]), sum[0]);
            sum[1] = fma(double(x.of[c]), double(z.of[c]), sum[1]);
          }
        });
        block_sums(sum, shared);
        const int j = first + int(threadIdx.x);
        if (threadIdx.x < 2 && j <= i && of.either(far, i, far, j)) of.write(i, j, shared.total[j - first]);
      }
  }
};

// Two blocks in a multiprocessor where their registers are enough.
template <class G, int R>
__global__ void __launch_bounds__(gram_threads, R <= 9 ? 2 : 1) sum_rows(Gram s) {
  using Shared = RowsShared<G, R>;
  auto& shared = block_shared<Shared>();
  const int thread = int(threadIdx.x), lane = thread % warp;
  for (int64_t unit = blockIdx.x; unit < s.batch * s.num_chunks; unit += gridDim.x) {
    const Chunk chunk = s.chunks[unit % s.num_chunks];
    const ChunkOfRows<G> of = {s, chunk, unit / s.num_chunks, s.partials + unit * Shared::sums, lie_apart(s.values)};
    const unsigned there = find_rows(of, shared.rows);
    float sum[Shared::sums] = {};
    if (there)
      for_own_columns<G>(chunk.end - chunk.begin, [&](auto width, int64_t p) {
        add_columns<decltype(width)::columns>(shared.rows, p, s.centre, sum);
      });
    block_sums(sum, shared.of);

    const FarRows<G, R> rows = {of, shared.rows, there, shared.of};
    const float square = lane < R ? float(shared.of.total[lane < R ? gram_pair(lane, lane) : 0]) : 1.f;
    const bool out_of_range = (there >> lane & 1) != 0 && of.out_of_range(lane, square);
    unsigned far = __ballot_sync(0xffffffffu, out_of_range);
    const unsigned zero = __ballot_sync(0xffffffffu, out_of_range && square == 0.f);
    for (int r = 0; zero >> r; ++r)
      if ((zero >> r & 1) != 0 && !rows.any(r)) far &= ~(1u << r);
    static_assert(gram_threads >= gram_most * gram_most);
    const int i = thread / gram_most, j = thread % gram_most;
    if (i < R && j <= i && !of.either(far, i, far, j))
      of.write(i, j, (there >> i & there >> j & 1) != 0 ? shared.of.total[gram_pair(i, j)] : 0.);
    if (far) rows.sum(far);
  }
}

// For R and more rows.
template <class G, int R = gram_few + 1>
static Problem launch_rows(const Gram& s, Stream stream) {
  if constexpr (R < gram_most)
    if (s.rows > R) return launch_rows<G, R + 1>(s, stream);
  return launch_units(sum_rows<G, R>, s.batch * s.num_chunks, gram_threads, stream, s);
}

Problem gram_rows(const Gram& s, Stream stream) {
  Problem problem = nullptr;
  with_type(s.values.type, [&](auto type) {
    using G = typename decltype(type)::type;
    if constexpr (sizeof(Scalar<G>) == sizeof(float)) problem = launch_rows<G>(s, stream);
  });
  return problem;
}

}  // namespace mt2o::cuda
