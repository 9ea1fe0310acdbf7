#include "../core/mask.h"

#include "columns.cuh"

namespace mt2o::cuda {

constexpr int threads = 256;

// A row as a task sees it.  Numbers are only moved: words of their size do.
template <class Word>
__global__ void __launch_bounds__(threads) mask_row(Mask s, Parts parts) {
  const Chunk part = parts[blockIdx.x];
  const SegmentMasks masks(s.masks, 1, part.segment);
  const Word* values = static_cast<const Word*>(s.values);
  Word* out = static_cast<Word*>(s.out);
  for_columns<16 / int(sizeof(Word))>(part.begin, part.end, [&](auto width, int64_t p) {
    constexpr int V = decltype(width)::columns;
    Pack<Word, V> x = *reinterpret_cast<const Pack<Word, V>*>(values + p);
    const uint32_t bits = masks.counted(0, p, V);
#pragma unroll
    for (int i = 0; i < V; ++i) x.of[i] &= Word(Word(0) - Word(bits >> i & 1));
    *reinterpret_cast<Pack<Word, V>*>(out + p) = x;
  });
}

Problem mask(const Mask& s, Extent extent, Stream stream) {
  if (extent.chunks == 0 || extent.columns == 0) return nullptr;
  const int size = s.type == Type::float64 ? 8 : s.type == Type::float32 ? 4 : 2;
  const auto kernel = size == 8 ? mask_row<uint64_t> : size == 4 ? mask_row<uint32_t> : mask_row<uint16_t>;
  return launch_parts(kernel, {1, 1, threads, part_columns(size)}, s.chunks, extent, stream, s);
}

}  // namespace mt2o::cuda
