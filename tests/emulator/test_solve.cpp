// Emulated `solve`: the bits of the CPU's, whose formulas it runs.
#include "check.h"
#include "core/solve/barrier.h"
#include "core/solve/cone.h"
#include "core/solve/conflict_averse.h"
#include "core/solve/descent.h"
#include "core/solve/jacobi.h"
#include "core/solve/projection.h"
#include "core/solve/simplex.h"
#include "orders.h"

using namespace data;
using Vector = std::vector<double>;

// Gram matrices of random rows that conflict; of the last problem one row is zero, of the one before a number is not
// finite.  Scratch of the least length, in memory of its own.
struct Problems {
  static constexpr int64_t batch = 4;
  int64_t tasks;
  Vector gram, workspace;

  Problems(int64_t tasks) : tasks(tasks), gram(batch * tasks * tasks), workspace(batch * solve_workspace(tasks), NAN) {
    Random random;
    const int64_t columns = tasks + 2;
    for (int64_t k = 0; k < batch; ++k) {
      Vector rows;
      for (int64_t i = 0; i < tasks * columns; ++i) rows.push_back(random.normal() - (i % columns == 0 ? 1. : 0.));
      for (int64_t p = 0; k == 3 && p < columns; ++p) rows[p] = 0.;
      for (int64_t i = 0; i < tasks; ++i)
        for (int64_t j = 0; j < tasks; ++j)
          for (int64_t p = 0; p < columns; ++p)
            gram[(k * tasks + i) * tasks + j] += rows[i * columns + p] * rows[j * columns + p];
    }
    gram[2 * tasks * tasks] = INFINITY;
  }
  GramProblems all() { return {batch, tasks, gram.data(), workspace.data(), solve_workspace(tasks), 1e-12}; }
  Vector vector() const { return Vector(batch * tasks, NAN); }
  Vector matrix() const { return Vector(batch * tasks * tasks, NAN); }
};

static Bytes bytes_of(std::initializer_list<const Vector*> results) {
  Bytes bytes;
  for (const Vector* x : results) {
    const auto* begin = reinterpret_cast<const unsigned char*>(x->data());
    bytes.insert(bytes.end(), begin, begin + x->size() * sizeof(double));
  }
  return bytes;
}

// run(problems, solve): the results' bytes, after solve(arguments).
template <class Run>
static void check_solver(Run run) {
  for (const int64_t tasks : {1, 2, 3, 8, 41}) {  // 41: scratch does not fit into shared memory
    Problems problems(tasks);
    const Bytes expected = run(problems, [](const auto& s) {
      for (int64_t k = 0; k < s.all.batch; ++k) solve_one(s, k);
    });
    for_orders([&] {
      const Bytes bytes = run(problems, [](const auto& s) { check_launched(cuda::solve(s, nullptr)); });
      CHECK_EQUAL(bytes, expected);
    });
  }
}

TEST(minimum_norm) {
  check_solver([](Problems& p, auto solve) {
    Vector weights = p.vector(), others = p.vector();
    const Vector linear(p.batch * p.tasks, 0.25);
    solve(MinimumNorm{p.all(), nullptr, weights.data()});
    solve(MinimumNorm{p.all(), linear.data(), others.data()});
    return bytes_of({&weights, &others});
  });
}
TEST(conflict_averse) {
  check_solver([](Problems& p, auto solve) {
    Vector weights = p.vector();
    const Vector preferences(p.batch * p.tasks, 1. / double(p.tasks));
    solve(ConflictAverse{p.all(), preferences.data(), 0.5, weights.data()});
    return bytes_of({&weights});
  });
}
TEST(power_barrier) {
  check_solver([](Problems& p, auto solve) {
    Vector weights = p.vector(), residual(p.batch, NAN), others = p.vector(), of_others(p.batch, NAN);
    const Vector target(p.batch * p.tasks, 1.);
    solve(PowerBarrier{p.all(), target.data(), 1., weights.data(), residual.data()});
    solve(PowerBarrier{p.all(), target.data(), 0.3, others.data(), of_others.data()});
    return bytes_of({&weights, &residual, &others, &of_others});
  });
}
TEST(dual_cone) {
  check_solver([](Problems& p, auto solve) {
    Vector weights = p.matrix(), lower(p.batch * p.tasks * p.tasks, 0.);
    for (int64_t i = 0; i < p.batch * p.tasks; ++i) lower[i * p.tasks + i % p.tasks] = 1. / double(p.tasks);
    solve(DualCone{p.all(), p.tasks, lower.data(), weights.data()});
    return bytes_of({&weights});
  });
}
TEST(eigen) {
  check_solver([](Problems& p, auto solve) {
    Vector values = p.vector(), vectors = p.matrix();
    solve(Eigen{p.all(), values.data(), vectors.data()});
    return bytes_of({&values, &vectors});
  });
}
// One entry of each order is no task, and passed over.
TEST(project) {
  check_solver([](Problems& p, auto solve) {
    Vector weights = p.vector(), others = p.vector(), targets(p.batch * p.tasks * p.tasks, 0.3);
    std::vector<int64_t> order;
    for (int64_t i = 0; i < p.batch * p.tasks * p.tasks; ++i) order.push_back(i % (p.tasks + 1));
    solve(Project{p.all(), order.data(), nullptr, 0., weights.data()});
    solve(Project{p.all(), order.data(), targets.data(), 0.1, others.data()});
    return bytes_of({&weights, &others, &targets});
  });
}
TEST(descent) {
  check_solver([](Problems& p, auto solve) {
    Vector weights = p.vector(), others = p.vector(), losses;
    for (int64_t i = 0; i < p.batch * p.tasks; ++i) losses.push_back(1. + double(i % p.tasks));
    const Vector rays(p.batch * p.tasks, 1.);
    solve(Descent{p.all(), losses.data(), rays.data(), 1e-4, false, weights.data()});
    solve(Descent{p.all(), rays.data(), rays.data(), 1e-4, false, others.data()});
    return bytes_of({&weights, &others});
  });
}
