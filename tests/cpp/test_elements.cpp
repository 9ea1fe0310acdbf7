// Weightings that change the gradients element by element
#include "check.h"
#include "elements_problem.h"

using namespace data;

// The same bits on every level and for any number of threads.  arguments(problem): of the kernel, which is a member of
// the table.
template <class G, class Kernel, class Arguments>
static ElementsProblem<G> run(Kernel Kernels::* kernel, Arguments arguments) {
  ElementsProblem<G> first;
  bool there = false;
  for_levels_and_threads([&](const Kernels& level, int threads) {
    ElementsProblem<G> problem;
    const auto s = arguments(problem);
    with_threads(threads, problem.layout, [&](int64_t begin, int64_t end) { (level.*kernel)(s, begin, end); });
    if (!there) first.grads = problem.grads, first.memory = problem.memory, first.last = problem.last;
    first.partials = there ? first.partials : problem.partials;
    there = true;
    CHECK_EQUAL(problem.results(), first.results());
    CHECK_EQUAL(problem.partials, first.partials);
  });
  return first;
}

template <class G>
static void check_elements() {
  using P = ElementsProblem<G>;
  const P before;
  const auto for_columns = [&](auto body) {
    for (const Chunk& c : before.layout.chunks)
      for (int64_t p = c.begin; p < c.end; ++p) body(p);
  };
  const double unit = 4 * rounding<Scalar<G>>;
  for (const bool shown : {false, true}) {
    const P after = run<G>(&Kernels::track, [&](P& problem) { return problem.track(shown); });
    for_columns([&](int64_t p) {
      for (int64_t i = 0; i < P::rows * P::tasks; ++i) {
        const bool moves = before.finite[i / P::tasks];
        const double old = before.memory.at(i, p), kept = old * before.keep[i],
                     added = before.grads.at(i, p) * before.fresh[i], now = after.memory.at(i, p);
        CHECK(moves ? std::abs(now - kept - added) <= unit * (std::abs(kept) + std::abs(added)) : now == old);
        CHECK_EQUAL(after.grads.at(i, p), moves && shown ? double(widened(rounded<G>(now))) : before.grads.at(i, p));
      }
    });
  }
  const P fed = run<G>(&Kernels::feed, [](P& problem) { return problem.feed(); });
  for_columns([&](int64_t p) {
    for (int64_t k = 0; k < P::rows; ++k) {
      double direction = 0., size = 0.;
      for (int64_t t = 0; t < P::tasks; ++t) {
        const double term = before.memory.at(k * P::tasks + t, p) * before.keep[k * P::tasks + t];
        direction += term, size += std::abs(term);
      }
      if (!before.finite[k]) direction = before.last.at(k, p);
      CHECK(std::abs(fed.last.at(k, p) - direction) <= 2 * unit * size);
      for (int64_t t = 1; t < P::tasks; ++t)
        CHECK_EQUAL(fed.grads.at(k * P::tasks + t, p), before.finite[k] ? 0. : before.grads.at(k * P::tasks + t, p));
    }
  });
  const P excess = run<G>(&Kernels::excess, [](P& problem) { return problem.excess(); });
  for (int64_t i = 0; i < P::rows * P::tasks; ++i) {
    double sum = 0., expected = 0.;
    for (int64_t c = 0; c < before.chunks; ++c)
      sum += excess.partials[(i / P::tasks * before.chunks + c) * P::tasks + i % P::tasks];
    for_columns([&](int64_t p) {
      const double square = before.grads.at(i, p) * before.grads.at(i, p);
      expected += square / std::sqrt(square + before.memory.at(i, p));
    });
    CHECK(std::abs(sum - expected) <= 1e-12 * expected);
  }
  const P dropped = run<G>(&Kernels::drop_signs, [](P& problem) { return problem.drop_signs(); });
  for_columns([&](int64_t p) {
    for (int64_t k = 0; k < P::rows; ++k) {
      double signs[2] = {0., 0.};  // what is left of the positive ones and of the negative ones, of one
      for (int64_t t = 0; t < P::tasks; ++t) {
        const double old = before.grads.at(k * P::tasks + t, p), now = dropped.grads.at(k * P::tasks + t, p);
        if (old != 0.) signs[old < 0.] = now / old;
      }
      for (const double left : signs) CHECK(left == 0. || left == 1. || std::abs(left - 0.25) <= rounding<G>);
      CHECK(!before.finite[k] || signs[0] != signs[1] || signs[0] == 0.);
    }
  });
}

TEST(of_float) { check_elements<float>(); }
TEST(of_double) { check_elements<double>(); }
TEST(of_bfloat16) { check_elements<bfloat16>(); }
TEST(of_float16) { check_elements<float16>(); }
