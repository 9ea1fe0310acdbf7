// A row as a task sees it: zeros outside of its mask.  Numbers are only moved, so their bits are all that counts.
// Included by kernels_impl.h.

template <class Word>
void mask_chunk(const Mask& s, const Chunk& chunk) {
  const Word* values = static_cast<const Word*>(s.values);
  Word* out = static_cast<Word*>(s.out);
  const SegmentMasks masks(s.masks, 1, chunk.segment);
  constexpr int64_t lanes = 16;
  for (int64_t p = chunk.begin; p < chunk.end; p += lanes) {
    const int64_t n = least(lanes, chunk.end - p);
    const uint32_t bits = masks.counted(0, p, n);
    if (n < lanes) {
      for (int64_t i = 0; i < n; ++i) out[p + i] = bits >> i & 1 ? values[p + i] : Word(0);
      continue;
    }
    Word seen[lanes];
    for (int64_t i = 0; i < lanes; ++i) seen[i] = values[p + i] & Word(Word(0) - Word(bits >> i & 1));
    for (int64_t i = 0; i < lanes; ++i) out[p + i] = seen[i];
  }
}

void mask(const Mask& s, int64_t first, int64_t last) {
  for (int64_t c = first; c < last; ++c) switch (s.type) {
      case Type::float32: mask_chunk<uint32_t>(s, s.chunks[c]); break;
      case Type::float64: mask_chunk<uint64_t>(s, s.chunks[c]); break;
      case Type::bfloat16:
      case Type::float16: mask_chunk<uint16_t>(s, s.chunks[c]); break;
    }
}
