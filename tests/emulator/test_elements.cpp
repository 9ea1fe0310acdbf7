// Emulated `elements`: the bits of the CPU's; sums of ExcessMTL up to the order of their terms.
#include "check.h"
#include "elements_problem.h"
#include "orders.h"

using namespace data;

template <class G>
static void check_elements() {
  using P = ElementsProblem<G>;
  const auto same = [](auto on_cpu, auto on_gpu) {
    P expected;
    on_cpu(expected);
    for_orders([&] {
      P problem;
      check_launched(on_gpu(problem, extent_of(problem.layout)));
      CHECK_EQUAL(problem.results(), expected.results());
    });
    return expected;
  };
  for (const bool shown : {false, true})
    same([&](P& p) { kernels().track(p.track(shown), 0, p.chunks); },
         [&](P& p, cuda::Extent extent) { return cuda::track(p.track(shown), extent, nullptr); });
  same([](P& p) { kernels().feed(p.feed(), 0, p.chunks); },
       [](P& p, cuda::Extent extent) { return cuda::feed(p.feed(), extent, nullptr); });
  same([](P& p) { kernels().drop_signs(p.drop_signs(), 0, p.chunks); },
       [](P& p, cuda::Extent extent) { return cuda::drop_signs(p.drop_signs(), extent, nullptr); });

  const int64_t segments = int64_t(numels.size());
  std::vector<double> sums(P::rows * segments * P::tasks);
  const P expected = same([](P& p) { kernels().excess(p.excess(), 0, p.chunks); },
                          [&](P& p, cuda::Extent) { return cuda::excess(p.excess(), sums.data(), segments, nullptr); });
  for (int64_t k = 0; k < P::rows; ++k)
    for (int64_t segment = 0; segment < segments; ++segment)
      for (int64_t t = 0; t < P::tasks; ++t) {
        double sum = 0.;
        for (int64_t c = 0; c < expected.chunks; ++c)
          if (expected.layout.chunks[c].segment == segment)
            sum += expected.partials[(k * expected.chunks + c) * P::tasks + t];
        CHECK(std::abs(sums[(k * segments + segment) * P::tasks + t] - sum) <= 1e-13 * sum);
      }
}

TEST(of_float) { check_elements<float>(); }
TEST(of_double) { check_elements<double>(); }
TEST(of_bfloat16) { check_elements<bfloat16>(); }
TEST(of_float16) { check_elements<float16>(); }
