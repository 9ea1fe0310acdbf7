// Emulated `finite`: finds an infinity and a NaN wherever they are.
#include "check.h"
#include "orders.h"

using namespace data;

template <class G>
static void check_finite() {
  Random random;
  const Layout layout = plan_layout(numels);
  const int64_t rows = 3, tasks = 2;
  Matrix<G> grads = random.matrix<G>(rows * tasks, layout);
  set_some_to_zero(grads, layout);
  grads[0][0] = rounded<G>(type_of<G> == Type::float16 ? 65504. : 3e38);  // large, but finite
  const auto check = [&](const std::vector<float>& expected) {
    const BothWays<G> both(grads, tasks, layout);
    for_orders([&] {
      for (const Gradients& where : both.all()) {
        std::vector<float> flags(rows, 0.f);
        const Finite s = {rows, tasks, where, flags.data(), layout.chunks.data()};
        check_launched(cuda::finite(s, extent_of(layout), nullptr));
        CHECK_EQUAL(flags, expected);
      }
    });
  };
  check({0.f, 0.f, 0.f});
  for (const Chunk& c : {layout.chunks.front(), layout.chunks.back()})
    for (const int64_t p : {c.begin, c.end - 1})
      for (const double bad : {double(INFINITY), double(NAN)}) {
        const G good = grads[3][p];
        grads[3][p] = rounded<G>(bad);  // task 1 of row 1
        check({0.f, 1.f, 0.f});
        grads[3][p] = good;
      }
}

TEST(of_float) { check_finite<float>(); }
TEST(of_double) { check_finite<double>(); }
TEST(of_bfloat16) { check_finite<bfloat16>(); }
TEST(of_float16) { check_finite<float16>(); }

// A word of memory says the same as its numbers do.
template <class S>
static void check_words(const std::vector<uint16_t>& numbers) {
  for (const uint16_t bits : numbers) {
    const S x = {bits}, one = rounded<S>(1.);
    for (const auto& [low, high] : {std::pair(x, one), std::pair(one, x), std::pair(x, x)}) {
      const uint32_t marked = marked_nonfinite<S>(uint32_t(low.bits) | uint32_t(high.bits) << 16);
      CHECK_EQUAL((marked & 0x8000) == 0, is_finite(low));
      CHECK_EQUAL((marked & 0x80000000) == 0, is_finite(high));
    }
  }
}
TEST(words_of_memory) {
  std::vector<uint16_t> all(1 << 16);
  for (size_t i = 0; i < all.size(); ++i) all[i] = uint16_t(i);
  check_words<bfloat16>(all);
  check_words<float16>(all);
  for (const uint32_t upper : all)
    for (const uint32_t lower : {0u, 1u, 0xffffu}) {
      const uint32_t word = upper << 16 | lower;
      CHECK_EQUAL((marked_nonfinite<float>(word) & FiniteBits<float>::signs) == 0, is_finite(float_of(word)));
    }
}
