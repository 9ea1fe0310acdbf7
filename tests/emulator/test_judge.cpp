// Emulated `judge`: the bits of the CPU's, whose formulas it runs, in several orders of threads.
#include "check.h"
#include "cpu/judge.h"
#include "orders.h"

using namespace data;

// Results of one problem; all that a function writes.
struct Tables {
  std::vector<double> sums, filled, usable_losses, largest, losses, weights, refusals, table;
  std::vector<float> found, settled, applied;
  std::vector<uint8_t> flags, outcome;
  std::vector<int64_t> counts;

  Tables(int64_t rows, int64_t tasks)
      : sums(rows * tasks * tasks, -1.),
        filled(sums),
        usable_losses(rows * tasks, -1.),
        largest(usable_losses),
        losses(usable_losses),
        weights(usable_losses),
        refusals(rows * 3, -1.),
        table(rows * 4, 2.),
        found(rows, -1.f),
        settled(found),
        applied(rows * tasks, -1.f),
        flags(2 * rows, 2),
        outcome(flags),
        counts(rows, 7) {}

  Bytes bytes() const {
    Bytes all;
    const auto add = [&](const auto& values) {
      const auto* begin = reinterpret_cast<const unsigned char*>(values.data());
      all.insert(all.end(), begin, begin + values.size() * sizeof(values[0]));
    };
    add(sums), add(filled), add(usable_losses), add(largest), add(losses), add(weights), add(refusals), add(table);
    add(found), add(settled), add(applied), add(flags), add(outcome), add(counts);
    return all;
  }
};

static void check_judge(int64_t rows, int64_t tasks, int64_t segments, bool together) {
  Random random;
  std::vector<double> grams(rows * segments * tasks * tasks);
  for (double& x : grams) x = random.normal();
  for (int64_t i = 0; i < rows * segments; ++i)
    for (int64_t t = 0; t < tasks; ++t) grams[(i * tasks + t) * tasks + t] = 3.;
  std::vector<float> scalars(rows * tasks, 0.5f);
  if (rows > 2) grams[2 * segments * tasks * tasks] = INFINITY, scalars[tasks] = NAN;
  std::vector<uint8_t> outside(rows * tasks, 0);
  outside[rows * tasks - 1] = rows > 1;
  const std::vector<float> before(rows, 0.f), factor = {2.f};
  const auto run = [&](auto judge, auto settle, auto count) {
    Tables x(rows, tasks);
    Judge s = {};
    s.rows = rows, s.tasks = tasks, s.segments = segments, s.together = together, s.limit = 3e38;
    s.losses.table = x.losses.data(), s.losses.count = rows * tasks;
    for (int64_t i = 0; i < rows * tasks; ++i) s.losses.scalars[i] = &scalars[i];
    s.grams = grams.data(), s.factor = factor.data(), s.before = before.data();
    s.outside = reinterpret_cast<const bool*>(outside.data());
    s.found = x.found.data(), s.finite = reinterpret_cast<bool*>(x.flags.data()), s.usable = s.finite + rows;
    s.sums = x.sums.data(), s.filled = x.filled.data();
    s.usable_losses = x.usable_losses.data(), s.largest = x.largest.data();
    judge(s);
    Settle w = {};
    w.rows = rows, w.tasks = w.count = tasks, w.losses.table = x.losses.data(), w.raw = x.filled.data();
    w.finite = s.finite, w.usable = s.usable, w.before = s.found, w.outside = s.outside, w.largest = s.largest;
    w.offset = 2, w.divisor = 3., w.weights = x.weights.data(), w.applied = x.applied.data(),
    w.applied_type = Type::float32;
    w.took_part = reinterpret_cast<bool*>(x.outcome.data()), w.refused = w.took_part + rows;
    w.refusals = x.refusals.data(), w.found = x.settled.data();
    settle(w);
    count(Count{rows, tasks, w.found, w.refusals, 2, w.raw, w.took_part, together, false, x.counts.data(),
                x.table.data()});
    return x.bytes();
  };
  const Bytes expected = run([](const Judge& s) { cpu::judge(s); }, [](const Settle& s) { cpu::settle(s); },
                             [](const Count& s) { cpu::count(s); });
  for_orders([&] {
    const Bytes emulated = run([](const Judge& s) { check_launched(cuda::judge(s, nullptr)); },
                               [](const Settle& s) { check_launched(cuda::settle(s, nullptr)); },
                               [](const Count& s) { check_launched(cuda::count(s, nullptr)); });
    CHECK_EQUAL(emulated, expected);
  });
}

TEST(of_one_row) { check_judge(1, 3, 70, false); }
TEST(of_several_rows) { check_judge(4, 5, 33, false); }
TEST(of_rows_together) { check_judge(5, 2, 1, true); }
TEST(of_more_tasks_than_lanes) { check_judge(1, 40, 2, false); }
