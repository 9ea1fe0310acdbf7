// theta <- M theta (core/blend.h) for a tile of columns: a small matrix product, four rows x one group of columns in
// registers.  Included by kernels_impl.h.

constexpr int64_t blend_scratch = 256 * 1024;  // bytes of a thread's stack for staged rows

// Rows of scratch get sixteen elements more: a power of two apart they would fall into the same cache sets.
inline int64_t scratch_stride(int64_t tile) { return (tile + 15) / 16 * 16 + 16; }
// The tile that was asked for, or what fits the scratch with so many rows of it.
inline int64_t fitting_tile(int64_t tile, int64_t rows, int64_t size) {
  return least(tile, (blend_scratch / (rows * size) - 16) & ~int64_t(15));
}

// What the sum is added to.
enum class Base {
  theta,      // transfer:           theta_k                   staged: theta
  updated,    // consensus:          theta_k + added_k         staged: theta
  added_only  // adapt-then-combine: added_k = theta_k + u_k   staged: theta + u
};

// The mix of one segment, in theta's type.
template <class S>
struct Mix {
  const int32_t *counts, *columns;
  const S* values;
  const bool* identity;
  Mix(const PackedMix& packed, int64_t rows, int64_t segment) {
    const int64_t matrix = packed.matrices > 1 ? segment : 0, blocks = (rows + mix_block - 1) / mix_block;
    counts = packed.counts + matrix * blocks;
    columns = packed.columns + matrix * blocks * rows;
    values = static_cast<const S*>(packed.values) + matrix * blocks * rows * mix_block;
    identity = packed.identity + matrix * rows;
  }
};

// ahead(k, i): what to ask the memory for while the arithmetic of a blend leaves it idle.
struct NothingAhead {
  void operator()(int64_t, int64_t) const {}
};

// What a blend works on: a tile of n columns.  staged[j]: theta_j - theta_0 (j > 0).
template <class S, class Ahead>
struct BlendTile {
  S* theta;
  int64_t row, rows, n;
  const S *staged, *added;
  int64_t stride;
  const bool* kept;  // rows that must not be written
  Ahead ahead;
};

// R rows from row k on.
template <Base base, int R, class S, class Ahead>
void blend_rows(const BlendTile<S, Ahead>& tile, const Mix<S>& mix, int64_t k) {
  using N = Number<S>;
  const int64_t block = k / mix_block;
  const int32_t count = mix.counts[block], *columns = mix.columns + block * tile.rows;
  const S* values = mix.values + block * tile.rows * mix_block;
  for_groups<N>(tile.n, [&](int64_t i, auto left) {
    const auto added = [&](int r) { return load(tile.added + (k + r) * tile.stride + i); };
    N sum[R];  // has the size of differences; theta, or theta + u, is added last
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      tile.ahead(k + r, i);
      sum[r] = base == Base::updated ? added(r) : set1(S(0));
    }
    for (int32_t q = 0; q < count; ++q) {
      const N x = load(tile.staged + columns[q] * tile.stride + i);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r] = with_taken(sum[r], set1(values[q * mix_block + r]), x);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      if (tile.kept[k + r]) continue;
      S* out = tile.theta + (k + r) * tile.row + i;
      store(out, (base == Base::added_only ? added(r) : load(out, left)) + sum[r], left);
    }
  });
}

template <Base base, class S, class Ahead>
void blend(const BlendTile<S, Ahead>& tile, const Mix<S>& mix) {
  int64_t k = 0;
  for (; k + 4 <= tile.rows; k += 4) blend_rows<base, 4>(tile, mix, k);
  switch (tile.rows - k) {
    case 3: return blend_rows<base, 3>(tile, mix, k);
    case 2: return blend_rows<base, 2>(tile, mix, k);
    case 1: return blend_rows<base, 1>(tile, mix, k);
  }
}

// Row 0 is staged first and as it is; the others as differences to it.
template <class S, class N>
inline void stage(S* staged, int64_t stride, int64_t k, int64_t i, N x) {
  store(staged + k * stride + i, k == 0 ? x : x - load(staged + i));
}

template <class S>
void transfer_chunks(const Transfer& s, int64_t first, int64_t last) {
  alignas(64) S staged[blend_scratch / sizeof(S)];
  const int64_t tile = fitting_tile(s.tile, s.rows, sizeof(S)), stride = scratch_stride(tile);
  for (int64_t c = first; c < last; ++c) {
    const Mix<S> mix(s.mix, s.rows, s.chunks[c].segment);
    for (int64_t p = s.chunks[c].begin; p < s.chunks[c].end; p += tile) {
      const int64_t n = least(tile, s.chunks[c].end - p);
      S* theta = static_cast<S*>(s.theta) + p;
      for (int64_t k = 0; k < s.rows; ++k)
        for_groups<Number<S>>(
            n, [&](int64_t i, auto left) { stage(staged, stride, k, i, load(theta + k * s.row + i, left)); });
      blend<Base::theta>(BlendTile<S, NothingAhead>{theta, s.row, s.rows, n, staged, nullptr, stride, mix.identity, {}},
                         mix);
    }
  }
}
void transfer(const Transfer& s, int64_t first, int64_t last) {
  s.type == Type::float64 ? transfer_chunks<double>(s, first, last) : transfer_chunks<float>(s, first, last);
}
