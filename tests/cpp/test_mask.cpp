// Views, scores and exchanges of masks, element by element in plain loops.
#include "check.h"
#include "core/harmony.h"
#include "cpu/exchange.h"
#include "mask_problem.h"

using namespace data;

template <class G>
static void check_view() {
  const MaskProblem<G> problem(1);
  for_levels_and_threads([&](const Kernels& level, int threads) {
    Matrix<G> out(1, problem.layout), expected(1, problem.layout);
    const Mask s = problem.view(out);
    with_threads(threads, problem.layout, [&](int64_t begin, int64_t end) { level.mask(s, begin, end); });
    for (const Chunk& c : problem.layout.chunks)
      for (int64_t p = c.begin; p < c.end; ++p)
        expected[0][p] = problem.has(0, p) || c.segment == 2 ? problem.values[0][p] : rounded<G>(0.);
    CHECK_EQUAL(out.bytes(), expected.bytes());
  });
}

template <class G>
static void check_scores(int64_t tasks) {
  const MaskProblem<G> problem(tasks);
  for (const bool dense : {false, true}) {
    Bytes first;
    for_levels_and_threads([&](const Kernels& level, int threads) {
      for (const Gradients& where : problem.both.all()) {
        Matrix<float> scores(tasks, problem.layout);
        const Harmony s = problem.scored(scores, where, dense);
        with_threads(threads, problem.layout, [&](int64_t begin, int64_t end) { level.harmony(s, begin, end); });
        if (first.empty()) first = scores.bytes();
        CHECK_EQUAL(scores.bytes(), first);
        for (const Chunk& c : problem.layout.chunks)
          for (int64_t p = c.begin; p < c.end; ++p) {
            double masked = 0., whole = 0.;
            for (int64_t t = 0; t < tasks; ++t) {
              const double g = problem.factors[t] * problem.grads.at(t, p);
              whole += g / double(tasks), masked += problem.has(t, p) || c.segment == 2 ? g / double(tasks) : 0.;
            }
            for (int64_t t = 0; t < tasks; ++t) {
              const double g = problem.factors[t] * problem.grads.at(t, p), x = problem.values.at(0, p);
              const double own = problem.has(t, p) || c.segment == 2 ? g : 0.;
              const double importance = dense ? own * own : std::fabs(x);
              const double expected =
                  problem.has(t, p) ? importance + 3. * masked * own : (dense ? whole * g : masked * own);
              CHECK_NEAR(scores[t][p], expected, 1e-5 * (1. + std::fabs(expected) + g * g + std::fabs(whole * g)));
            }
          }
      }
    });
  }
}

TEST(views) { check_view<float>(), check_view<double>(), check_view<bfloat16>(), check_view<float16>(); }
TEST(scores) {
  for (const int64_t tasks : {1, 2, 5}) check_scores<float>(tasks), check_scores<double>(tasks);
  check_scores<bfloat16>(3), check_scores<float16>(3);
}

// As many bits are cleared as are set, and no bit that stays has a better score than one that goes.
TEST(exchanges) {
  for (const int64_t amount : {0, 1, 37, 100000}) {
    ExchangeProblem problem(3);
    const std::vector<uint8_t> before = problem.masks;
    const Exchange s = problem.arguments(amount);
    for (int64_t task = 0; task < 3; ++task) cpu::exchange(s, task);
    for (int64_t task = 0; task < 3; ++task) {
      int64_t cleared = 0, set = 0, inside = 0, outside = 0;
      std::pair<float, int64_t> last_cleared = {-INFINITY, -1}, first_kept = {INFINITY, 1 << 30};
      for (const Chunk& c : problem.of.layout.chunks)
        for (int64_t p = c.begin; p < c.end; ++p) {
          const bool was = problem.of.has(task, p);
          const bool is = (problem.masks[task * problem.of.bytes + p / 8] >> (p % 8) & 1) != 0;
          ++(was ? inside : outside);
          cleared += was && !is, set += !was && is;
          const std::pair<float, int64_t> at = {problem.scores[task][p], p};
          if (was && !is) last_cleared = std::max(last_cleared, at);
          if (was && is) first_kept = std::min(first_kept, at);
        }
      CHECK_EQUAL(cleared, std::min(amount, std::min(inside, outside)));
      CHECK_EQUAL(set, cleared);
      CHECK(last_cleared < first_kept);
    }
  }
}

// Keys have the order of numbers.
TEST(keys) {
  const std::vector<float> numbers = {-INFINITY, -3.f, -1e-42f, 0.f, 1e-42f, 2.f, INFINITY};
  for (size_t i = 1; i < numbers.size(); ++i) {
    CHECK(exchange_key(numbers[i - 1], true, 9) < exchange_key(numbers[i], true, 3));
    CHECK(exchange_key(numbers[i - 1], false, 3) > exchange_key(numbers[i], false, 9));
  }
  CHECK_EQUAL(exchange_key(0.f, true, 5), exchange_key(-0.f, true, 5));
  CHECK(exchange_key(1.f, true, 4) < exchange_key(1.f, true, 5));
}
