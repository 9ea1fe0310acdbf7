#include "gram.cuh"

#include <type_traits>

namespace mt2o::cuda {

// Which panels a unit of work is about: rows from x on with (other) rows from y on.
struct Panels {
  int64_t across, count;
  int height;  // panels of all rows, pairs of them, rows of a panel

  __device__ __forceinline__ void find(const Gram& s, int64_t pair, int& x, int& y) const {
    if (s.diagonal) {
      x = y = int(pair);
    } else if (s.cross) {
      x = int(pair / across), y = int(pair % across);
    } else {
      for (x = 0; gram_pair(x + 1, 0) <= pair;) ++x;
      y = int(pair - gram_pair(x, 0));
    }
    x *= height, y *= height;
  }
};

using PanelShared = SumsShared<80>;  // 8 x 8 products, and the squares of these rows

// One pair of panels over one chunk.  A: rows of a panel; of up to three rows, of float64 and of a diagonal, sums are
// taken in double; else in float, and again in double where the square of a row is out of range.
template <class G, int A>
struct PanelPair {
  static constexpr bool in_float = sizeof(Scalar<G>) == 4 && A > gram_few;
  static constexpr int V = gram_columns<G>;
  using N = std::conditional_t<in_float, float, double>;

  ChunkOfRows<G> of;
  int x, y;  // rows from x on with others from y on
  PanelShared& shared;

  // Bit r: row first + r is out of range.
  template <class At>
  __device__ __forceinline__ unsigned out_of_range(int first, int count, At at) const {
    unsigned rows = 0;
    if constexpr (in_float)
      for (int r = 0; r < count; ++r)
        if (of.out_of_range(first + r, shared.total[at(r)])) rows |= 1u << r;
    return rows;
  }

  // What decides is the same for all threads of the block.
  __device__ __forceinline__ void run_triangle() const {
    triangle_sums<V, N>(of.template panel<A>(false, x), of.chunk, shared);
    const unsigned bad = out_of_range(x, A, [](int r) { return int(gram_pair(r, r)); });
    const int q = int(threadIdx.x), i = q / A, j = q % A;
    if (i < A && j <= i && !of.either(bad, i, bad, j)) of.write(x + i, x + j, shared.total[gram_pair(i, j)]);
    if (bad)
      for (int others = 0; others < A; others += 2) of.again_in_double(x, A, bad, x + others, bad >> others, shared);
  }
  __device__ __forceinline__ void run_rectangle() const {
    rectangle_sums<V, in_float, N>(of.template panel<A>(false, x), of.template panel<A>(of.s.cross, y), of.chunk,
                                   shared);
    const unsigned bad = out_of_range(x, A, [](int r) { return A * A + r; });
    const unsigned bad_others = out_of_range(y, A, [](int r) { return A * A + A + r; });
    const int q = int(threadIdx.x), i = q / A, j = q % A;
    if (i < A && !of.either(bad, i, bad_others, j)) of.write(x + i, y + j, shared.total[q]);
    if (bad | bad_others)
      for (int others = 0; others < A; others += 2)
        of.again_in_double(x, A, bad, y + others, bad_others >> others, shared);
  }
};

template <class G, int A, bool Apart>
__global__ void __launch_bounds__(gram_threads, A > 3 ? 1 : 2) gram_chunks(Gram s, Panels panels) {
  auto& shared = block_shared<PanelShared>();
  const int64_t sums = gram_sums(s);
  for (int64_t unit = blockIdx.x; unit < s.batch * s.num_chunks * panels.count; unit += gridDim.x) {
    const int64_t at = unit / panels.count;
    const Chunk chunk = s.chunks[at % s.num_chunks];
    PanelPair<G, A> pair = {{s, chunk, at / s.num_chunks, s.partials + at * sums, Apart}, 0, 0, shared};
    panels.find(s, unit % panels.count, pair.x, pair.y);
    if (!s.cross && pair.x == pair.y)
      pair.run_triangle();
    else
      pair.run_rectangle();
  }
}

template <class G, bool Apart, int A>
static Problem launch_chunks(const Gram& s, Stream stream) {
  const int64_t across = (s.rows + A - 1) / A;
  const Panels panels = {across, s.diagonal ? s.rows : s.cross ? across * across : gram_pair(across, 0), A};
  return launch_units(gram_chunks<G, A, Apart>, s.batch * s.num_chunks * panels.count, gram_threads, stream, s, panels);
}

Problem gram(const Gram& s, double* out, int64_t segments, Stream stream) {
  if (s.batch * segments == 0) return nullptr;
  Problem problem = nullptr;
  if (s.num_chunks > 0)
    with_type(s.values.type, [&](auto type) {
      using G = typename decltype(type)::type;
      constexpr int most = sizeof(G) == 8 ? 4 : 8;
      constexpr bool in_float = sizeof(Scalar<G>) == 4;
      if (in_float && !s.cross && !s.diagonal && s.rows > gram_few && s.rows <= gram_most) {
        problem = gram_rows(s, stream);
        return;
      }
      problem = with_place(s.values, [&](auto apart) {
        constexpr bool Apart = decltype(apart)::value;
        switch (s.diagonal ? 1 : s.rows) {
          case 1: return launch_chunks<G, Apart, 1>(s, stream);
          case 2: return launch_chunks<G, Apart, 2>(s, stream);
          case 3: return launch_chunks<G, Apart, 3>(s, stream);
          case 4:  // all pairs of floats: by gram_rows
            if constexpr (!in_float || !Apart) return launch_chunks<G, Apart, 4>(s, stream);
            [[fallthrough]];
          default: return launch_chunks<G, Apart, most>(s, stream);
        }
      });
    });
  if (problem) return problem;
  return gram_add(s, out, segments, stream);
}

}  // namespace mt2o::cuda
