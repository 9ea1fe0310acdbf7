// What the memory can do: loops with trivial arithmetic, compiled by bench/floor.py, called with two threads.
//
// Traps that these are written around: the compiler deletes a store of x * 1 (so the factor comes from the caller);
// untouched memory reads one shared zero page out of the cache (so the caller fills everything); a plain store first
// reads the line it overwrites (so copy and triad use streaming stores).
#include <immintrin.h>

#include <cstdint>
#include <thread>
#include <vector>

namespace {

template <class Body>
void in_threads(int threads, int64_t n, Body body) {
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t)
    others.emplace_back([=] { body(n * t / threads & ~15, n * (t + 1) / threads & ~15); });
  body(0, n / threads & ~15);
  for (auto& other : others) other.join();
}

template <int Tasks>
void step_rows(float* theta, float* m, float* v, const float* grads, int64_t rows, int64_t row, float factor,
               int64_t begin, int64_t end) {
  const __m256 f = _mm256_set1_ps(factor);
  const auto add = [](float* p, __m256 x) { _mm256_store_ps(p, _mm256_add_ps(_mm256_load_ps(p), x)); };
  for (int64_t tile = begin; tile < end; tile += 2048)
    for (int64_t k = 0; k < rows; ++k)
      for (int64_t i = tile; i < (tile + 2048 < end ? tile + 2048 : end); i += 8) {
        __m256 g = _mm256_load_ps(grads + k * Tasks * row + i);
        for (int t = 1; t < Tasks; ++t) g = _mm256_add_ps(g, _mm256_load_ps(grads + (k * Tasks + t) * row + i));
        g = _mm256_mul_ps(f, g);
        add(theta + k * row + i, g), add(m + k * row + i, g), add(v + k * row + i, g);
      }
}

}  // namespace

extern "C" {

void floor_copy(float* y, const float* x, int64_t n, int threads) {
  in_threads(threads, n, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += 8) _mm256_stream_ps(y + i, _mm256_load_ps(x + i));
  });
}
void floor_triad(float* z, const float* x, const float* y, float factor, int64_t n, int threads) {
  in_threads(threads, n, [=](int64_t begin, int64_t end) {
    const __m256 f = _mm256_set1_ps(factor);
    for (int64_t i = begin; i < end; i += 8)
      _mm256_stream_ps(z + i, _mm256_add_ps(_mm256_load_ps(x + i), _mm256_mul_ps(f, _mm256_load_ps(y + i))));
  });
}
void floor_scale(float* x, float factor, int64_t n, int threads) {
  in_threads(threads, n, [=](int64_t begin, int64_t end) {
    const __m256 f = _mm256_set1_ps(factor);
    for (int64_t i = begin; i < end; i += 8) _mm256_store_ps(x + i, _mm256_mul_ps(f, _mm256_load_ps(x + i)));
  });
}
float floor_read(const float* x, int64_t n, int threads) {
  std::vector<float> sums(threads * 16);
  in_threads(threads, n, [&](int64_t begin, int64_t end) {
    __m256 a = _mm256_setzero_ps(), b = a;
    for (int64_t i = begin; i < end; i += 16)
      a = _mm256_add_ps(a, _mm256_load_ps(x + i)), b = _mm256_add_ps(b, _mm256_load_ps(x + i + 8));
    float lanes[8];
    _mm256_storeu_ps(lanes, _mm256_add_ps(a, b));
    sums[begin * threads / (n + 1) * 16] += lanes[0];
  });
  return sums[0];
}

// The twin of the priority rule: reads the rows of all tasks once, writes one.
void floor_sum(float* out, const float* rows, int64_t tasks, int64_t row, int threads) {
  in_threads(threads, row, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += 8) {
      __m256 sum = _mm256_load_ps(rows + i);
      for (int64_t t = 1; t < tasks; ++t) sum = _mm256_add_ps(sum, _mm256_load_ps(rows + t * row + i));
      _mm256_stream_ps(out + i, sum);
    }
  });
}

// The twin of the fused step: reads and writes the same arrays in the same order, rows of a tile one after another.
void floor_step(float* theta, float* m, float* v, const float* grads, int64_t rows, int64_t tasks, int64_t row,
                float factor, int threads) {
  in_threads(threads, row, [=](int64_t begin, int64_t end) {
    switch (tasks) {
      case 1: return step_rows<1>(theta, m, v, grads, rows, row, factor, begin, end);
      case 2: return step_rows<2>(theta, m, v, grads, rows, row, factor, begin, end);
      case 3: return step_rows<3>(theta, m, v, grads, rows, row, factor, begin, end);
    }
  });
}
}
