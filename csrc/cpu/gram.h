// Inner products of rows: of all pairs, of two sets of rows, of each row alone.  Included by kernels_impl.h.
//
// The order in which a pair is summed depends on the column alone: not on the block of pairs that it is computed in
// (which differs between instruction sets), nor on threads.

constexpr int64_t gram_scratch = 256 * 1024;  // bytes of a thread's stack, for rows that are not used as they are

// Some columns of one set of rows or of two.
template <class S>
struct GramTile {
  Rows<S> rows, others;  // others.of: nullptr if they are the rows themselves
  int64_t count, columns;
};

// Where rows that cannot be used as they are are written to.
template <class S>
struct Scratch {
  S* const* of;
  S* operator[](int64_t i) const { return of[i]; }
  Scratch from(int64_t i) const { return {of + i}; }
  Rows<S> rows() const { return {of}; }
};

#include "gram_few.h"
#include "gram_many.h"

// The columns of a tile: no more than the rows of both sets fit the scratch.  Rows of scratch get sixteen elements
// more: a power of two apart they would fall into the same cache sets.
inline int64_t gram_columns(int64_t rows, int64_t size) {
  return least(gram_tile, (gram_scratch / size / rows - 16) & ~int64_t(15));
}

// Rows of a tile less their mean.  Taken from differences to the first row, which are exact or nearly so where the rows
// are close to one another: the mean itself would carry a rounding error of the size of the rows.  These rows lie in
// one buffer, as those of the scratch do: at even distances.
template <class G>
void centre_rows(Rows<G> rows, int64_t count, int64_t n, Scratch<Scalar<G>> out) {
  using N = Number<G>;
  const N share = set1(Scalar<G>(1) / Scalar<G>(count));
  const G* from = rows[0];
  Scalar<G>* to = out[0];
  const int64_t row = count > 1 ? rows[1] - from : 0, stride = count > 1 ? out[1] - to : 0;
  for_groups<N>(n, [&](int64_t p, auto left) {
    const N first = load(from + p, left);
    N sum = first - first;
    for (int64_t i = 1; i < count; ++i) {
      const N difference = load(from + i * row + p, left) - first;
      store(to + i * stride + p, difference);
      sum = sum + difference;
    }
    const N mean = sum * share;
    store(to + p, first - first - mean);
    for (int64_t i = 1; i < count; ++i) store(to + i * stride + p, load(to + i * stride + p) - mean);
  });
}
template <class G>
void widen_rows(Rows<G> rows, int64_t count, int64_t n, Scratch<Scalar<G>> out) {
  for (int64_t i = 0; i < count; ++i) {
    const G* from = rows[i];
    Scalar<G>* into = out[i];
    for_groups<Number<G>>(n, [&](int64_t p, auto left) { store(into + p, load(from + p, left)); });
  }
}

// The sums of one chunk of one batch.
template <class G>
class GramChunk {
 public:
  using S = Scalar<G>;
  GramChunk(const Gram& s, int64_t batch, const Chunk& chunk, double* out)
      : s_(s), batch_(batch), chunk_(chunk), out_(out) {}

  // columns: of a tile, at most.
  void run(Scratch<S> scratch, int64_t columns) {
    for (int64_t q = 0; q < gram_sums(s_); ++q) out_[q] = 0.;
    // A row that is squared straight from the memory is read in one run.
    const int64_t step = s_.diagonal && !s_.centre ? chunk_.end - chunk_.begin : columns;
    for (int64_t p = chunk_.begin; p < chunk_.end; p += step) add_tile(p, least(step, chunk_.end - p), scratch);
  }

 private:
  bool wide() const { return s_.diagonal || s_.rows <= gram_few; }

  // The rows and others from column p on.
  GramTile<G> tile_at(int64_t p, int64_t n) {
    const RowGradients<G> rows(s_.values, batch_, chunk_.segment, p, lie_apart(s_.values));
    const G** others = rows_ + s_.rows;
    for (int64_t i = 0; i < s_.rows; ++i) {
      rows_[i] = rows[i];
      if (!rows_[i] && !s_.diagonal) rows_[i] = reinterpret_cast<const G*>(zeros);
      if (s_.cross)
        others[i] = static_cast<const G*>(s_.others) + batch_ * s_.others_batch_stride + i * s_.others_row + p;
    }
    return {{rows_}, {s_.cross ? others : nullptr}, s_.rows, n};
  }

  void add_tile(int64_t p, int64_t n, Scratch<S> scratch) {
    const GramTile<G> tile = tile_at(p, n);
    if (!s_.centre && wide()) return gram_wide(tile, s_.diagonal, out_);
    if constexpr (sizeof(S) == sizeof(G))
      if (!s_.centre) return gram_many(tile, scratch, out_);
    const Scratch<S> other_scratch = scratch.from(s_.rows);
    const auto prepare = s_.centre ? centre_rows<G> : widen_rows<G>;
    GramTile<S> prepared = {scratch.rows(), {nullptr}, s_.rows, n};
    prepare(tile.rows, s_.rows, n, scratch);
    if (s_.cross) {
      prepared.others = other_scratch.rows();
      prepare(tile.others, s_.rows, n, other_scratch);
    }
    wide() ? gram_wide(prepared, s_.diagonal, out_) : gram_many(prepared, scratch, out_);
  }

  const Gram& s_;
  const int64_t batch_;
  const Chunk& chunk_;
  double* out_;
  const G* rows_[2 * max_rows];
};

void gram(const Gram& s, int64_t first, int64_t last) {
  with_type(s.values.type, [&](auto type) {
    using G = typename decltype(type)::type;
    using S = Scalar<G>;
    alignas(64) S memory[gram_scratch / sizeof(S)];
    S* scratch[2 * max_rows];
    const int64_t rows = (s.cross ? 2 : 1) * s.rows, columns = gram_columns(rows, sizeof(S));
    for (int64_t i = 0; i < rows; ++i) scratch[i] = memory + i * (columns + 16);
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t c = first; c < last; ++c)
        GramChunk<G>(s, b, s.chunks[c], s.partials + (b * s.num_chunks + c) * gram_sums(s)).run({scratch}, columns);
  });
}
