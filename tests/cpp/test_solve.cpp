// The solvers: what certifies a minimum, and scratch that is exactly as long as they say.
#include "check.h"
#include "core/solve/barrier.h"
#include "core/solve/cone.h"
#include "core/solve/conflict_averse.h"
#include "core/solve/descent.h"
#include "core/solve/jacobi.h"
#include "core/solve/projection.h"
#include "core/solve/simplex.h"
#include "data.h"

using namespace data;
using Vector = std::vector<double>;

enum class Kind { normal, conflicting, scaled, duplicate, opposite, low_rank, zero, not_finite };
static const std::vector<Kind> kinds = {Kind::normal,   Kind::conflicting, Kind::scaled, Kind::duplicate,
                                        Kind::opposite, Kind::low_rank,    Kind::zero,   Kind::not_finite};
static const std::vector<int64_t> numbers_of_tasks = {1, 2, 3, 8, 17, 40};

// Rows of one kind and their Gram matrix; scratch of the least length, filled with NaN, in memory of its own.
struct Problem {
  int64_t tasks, columns;
  Kind kind;
  Vector rows, gram, workspace;

  Problem(Kind kind, int64_t tasks, double scale = 1.) : tasks(tasks), kind(kind) {
    Random random;
    columns = kind == Kind::low_rank ? tasks / 3 + 1 : 2 * tasks + 3;
    for (int64_t i = 0; i < tasks * columns; ++i) rows.push_back(random.normal());
    for (int64_t t = 0; t < tasks; ++t) change(t);
    for (double& x : rows) x *= scale;
    for (int64_t i = 0; i < tasks; ++i)
      for (int64_t j = 0; j < tasks; ++j) gram.push_back(product(i, j));
    if (kind == Kind::not_finite) gram[tasks * tasks - 1] = INFINITY;
    workspace.assign(solve_workspace(tasks), NAN);
  }

  void change(int64_t t) {
    double* row = rows.data() + t * columns;
    const double* pair = rows.data() + t / 2 * columns;
    for (int64_t p = 0; p < columns; ++p) {
      if (kind == Kind::scaled) row[p] *= std::pow(10., -double(t % 4));
      if (kind == Kind::duplicate) row[p] = pair[p];
      if (kind == Kind::opposite && t % 2 == 1) row[p] = -rows[(t - 1) * columns + p];
      if (kind == Kind::zero && t % 3 == 0) row[p] = 0.;
      if (kind == Kind::conflicting && p < tasks) row[p] += p == t ? double(tasks) : -2.;
    }
  }
  double product(int64_t i, int64_t j) const {
    double sum = 0.;
    for (int64_t p = 0; p < columns; ++p) sum += rows[i * columns + p] * rows[j * columns + p];
    return sum;
  }
  double length(int64_t t) const { return std::sqrt(gram[t * tasks + t]); }
  double longest() const {
    double longest = 0.;
    for (int64_t t = 0; t < tasks; ++t) longest = std::fmax(longest, length(t));
    return longest;
  }
  double inner(int64_t t, const Vector& w) const {  // (Qw)_t
    double sum = 0.;
    for (int64_t j = 0; j < tasks; ++j) sum += gram[t * tasks + j] * w[j];
    return sum;
  }
  double square(const Vector& w) const {
    double sum = 0.;
    for (int64_t t = 0; t < tasks; ++t) sum += w[t] * inner(t, w);
    return sum;
  }
  GramProblems all(double rtol = 0.) {
    return {1, tasks, gram.data(), workspace.data(), int64_t(workspace.size()), rtol};
  }
};

// body(problem) for every kind of rows, number of tasks and scale.
template <class Body>
static void for_problems(Body body) {
  for (const Kind kind : kinds)
    for (const int64_t tasks : numbers_of_tasks)
      for (const double scale : {1., 1e-8, 1e8}) try {
          Problem problem(kind, tasks, scale);
          body(problem);
        } catch (const std::runtime_error& error) {
          throw std::runtime_error(std::string(error.what()) + " (kind " + std::to_string(int(kind)) +
                                   ", tasks: " + std::to_string(tasks) + ")");
        }
}

// True if the input is not finite, after checking that all of x is NaN; else x is finite and zero rows have zero.
static bool is_nan(const Problem& p, const Vector& x) {
  for (size_t i = 0; i < x.size(); ++i) CHECK(p.kind == Kind::not_finite ? std::isnan(x[i]) : std::isfinite(x[i]));
  for (int64_t t = 0; t < p.tasks && p.kind == Kind::zero; t += 3) CHECK_EQUAL(x[t], 0.);
  return p.kind == Kind::not_finite;
}

TEST(least_norm) {
  for_problems([](Problem& p) {
    Vector w(p.tasks);
    solve_one(MinimumNorm{p.all(), nullptr, w.data()}, 0);
    if (is_nan(p, w) || p.longest() == 0.) return;
    double sum = 0.;
    for (int64_t t = 0; t < p.tasks; ++t) {
      CHECK(w[t] >= 0.);
      sum += w[t];
      if (p.length(t) > 0.) CHECK(p.inner(t, w) >= p.square(w) * (1. - 1e-12) - 1e-14 * p.longest() * p.longest());
    }
    CHECK_NEAR(sum, 1., 1e-13);
  });
}

TEST(linear_term) {
  for_problems([](Problem& p) {
    Vector w(p.tasks), q(p.tasks);
    const double unit = p.kind == Kind::not_finite ? 1. : p.longest() * p.longest();
    for (int64_t t = 0; t < p.tasks; ++t) q[t] = unit * std::sin(double(t));
    solve_one(MinimumNorm{p.all(), q.data(), w.data()}, 0);
    if (is_nan(p, w) || p.longest() == 0.) return;
    double level = p.square(w);
    for (int64_t t = 0; t < p.tasks; ++t) level += q[t] * w[t];
    for (int64_t t = 0; t < p.tasks; ++t)
      if (p.length(t) > 0.) CHECK(p.inner(t, w) + q[t] >= level - 1e-13 * unit);
  });
}

TEST(conflict_averse) {
  for_problems([](Problem& p) {
    Vector w(p.tasks), u(p.tasks, 1. / double(p.tasks));
    solve_one(ConflictAverse{p.all(1e-12), u.data(), 0.5, w.data()}, 0);
    if (is_nan(p, w)) return;
    Vector step = w;
    bool any = false;
    for (int64_t t = 0; t < p.tasks; ++t) any = any || w[t] != 0., step[t] -= p.length(t) > 0. ? u[t] : 0.;
    if (any) CHECK_NEAR(std::sqrt(p.square(step)), 0.5 * std::sqrt(p.square(u)), 1e-11 * p.longest());
  });
}

TEST(two_equal_rows_share) {
  Vector gram(4, 3.), workspace(solve_workspace(2)), w(2);
  solve_one(MinimumNorm{{1, 2, gram.data(), workspace.data(), 0}, nullptr, w.data()}, 0);
  CHECK_EQUAL(w[0], 0.5);
  CHECK_EQUAL(w[1], 0.5);
}

// On one support |J'v|^2 is a quadratic of the size of v: where it is the last one, a single step arrives.
TEST(the_crossing_is_exact_on_a_support) {
  for (const bool oriented : {false, true})
    for (const double farther : {1.001, 3., 1e6}) {
      Problem p(Kind::normal, 8);
      solve::Workspace w = solve::workspace_of(p.all(), 0);
      const solve::Rows rows = solve::rows_of(p.gram.data(), p.tasks, w);
      double* scratch = solve::take(w, p.tasks);
      solve::Simplex s = solve::simplex_of(rows, w);
      for (int64_t t = 0; t < p.tasks && oriented; ++t) s.set.linear[t] = 0.2 * std::sin(double(t));
      solve::start(s, rows, 100.);
      solve::minimise(s.set);
      const int64_t support = s.set.factor.count;
      const double reach = farther * std::sqrt(solve::square_norm(s));
      const double size = solve::crossing_on_support(s, 100., reach, scratch);
      s.set.total = size * s.shortest;
      solve::minimise(s.set);
      CHECK_EQUAL(s.set.factor.count, support);
      CHECK_NEAR(std::sqrt(solve::square_norm(s)) / reach, 1., 1e-14);
    }
}

TEST(barrier) {
  for (const double power : {0.3, 0.5, 1., 2.})
    for_problems([power](Problem& p) {
      Vector x(p.tasks), b(p.tasks, 1.5), residual(1);
      solve_one(PowerBarrier{p.all(), b.data(), power, x.data(), residual.data()}, 0);
      if (is_nan(p, x)) return;
      if (p.kind == Kind::low_rank || (p.kind == Kind::opposite && p.tasks > 1)) return;  // there may be no solution
      CHECK(residual[0] <= 1e-11);
      for (int64_t t = 0; t < p.tasks; ++t)
        if (p.length(t) > 0.) CHECK_NEAR(p.inner(t, x) / std::pow(b[t] / x[t], power), 1., 1e-10);
    });
}

TEST(cone) {
  for_problems([](Problem& p) {
    Vector v(2 * p.tasks), u(2 * p.tasks, 1. / double(p.tasks));
    for (int64_t t = 1; t < p.tasks; ++t) u[p.tasks + t] = 0.;
    solve_one(DualCone{p.all(), 2, u.data(), v.data()}, 0);
    const Vector first(v.begin(), v.begin() + p.tasks), second(v.begin() + p.tasks, v.end());
    if (is_nan(p, first) || is_nan(p, second)) return;
    for (const Vector& own : {first, second})
      for (int64_t t = 0; t < p.tasks; ++t) CHECK(p.inner(t, own) >= -1e-12 * p.length(t) * p.longest());
  });
}

TEST(eigenvalues) {
  for_problems([](Problem& p) {
    Vector values(p.tasks), vectors(p.tasks * p.tasks);
    solve_one(Eigen{p.all(), values.data(), vectors.data()}, 0);
    if (p.kind == Kind::not_finite) {
      CHECK(std::isnan(values[0]) && std::isnan(vectors.back()));
      return;
    }
    for (int64_t i = 0; i < p.tasks; ++i)
      for (int64_t j = 0; j < p.tasks; ++j) {
        double sum = 0., dot = 0.;
        for (int64_t k = 0; k < p.tasks; ++k) {
          sum += values[k] * vectors[i * p.tasks + k] * vectors[j * p.tasks + k];
          dot += vectors[k * p.tasks + i] * vectors[k * p.tasks + j];
        }
        CHECK_NEAR(sum, p.gram[i * p.tasks + j], 1e-13 * double(p.tasks) * p.longest() * p.longest());
        CHECK_NEAR(dot, i == j ? 1. : 0., 1e-14 * double(p.tasks));
      }
  });
}

TEST(projections) {
  for_problems([](Problem& p) {
    Vector w(p.tasks), targets(p.tasks * p.tasks, 0.2);
    std::vector<int64_t> order(p.tasks * p.tasks);
    for (size_t i = 0; i < order.size(); ++i) order[i] = int64_t(i * 7 + i / p.tasks) % p.tasks;
    solve_one(Project{p.all(), order.data(), nullptr, 0., w.data()}, 0);
    is_nan(p, w);
    solve_one(Project{p.all(), order.data(), targets.data(), 0.5, w.data()}, 0);
    is_nan(p, w);
    order[0] = -1, order.back() = p.tasks;  // are passed over
    solve_one(Project{p.all(), order.data(), nullptr, 0., w.data()}, 0);
    is_nan(p, w);
  });
}

TEST(descent_lowers_every_loss) {
  for (const bool relax : {true, false})
    for_problems([relax](Problem& p) {
      Vector w(p.tasks), losses(p.tasks, 1.), rays(p.tasks, 1.);
      solve_one(Descent{p.all(), losses.data(), rays.data(), 1e-4, relax, w.data()}, 0);
      if (is_nan(p, w)) return;
      for (int64_t t = 0; t < p.tasks; ++t) CHECK(p.inner(t, w) >= -1e-9 * p.length(t) * p.longest());
    });
}

TEST(balance) {
  for_problems([](Problem& p) {
    Vector w(p.tasks), losses(p.tasks, 1.), rays(p.tasks, 1.);
    for (int64_t t = 0; t < p.tasks; ++t) losses[t] = 1. + double(t);
    solve_one(Descent{p.all(), losses.data(), rays.data(), 1e-4, false, w.data()}, 0);
    if (is_nan(p, w) || p.longest() == 0.) return;
    double sum = 0.;
    for (const double own : w) {
      CHECK(own >= 0.);
      sum += own;
    }
    CHECK_NEAR(sum, 1., 1e-12);
  });
}

TEST(logarithm_and_exponential) {
  for (double x = 1e-300; x < 1e300; x *= 1.37) {
    CHECK_NEAR(solve::log(x), std::log(x), 4e-16 * std::fabs(std::log(x)) + 2e-16);
    const double y = std::log(x);
    CHECK_NEAR(solve::exp(y) / std::exp(y), 1., 1e-15 * (1. + std::fabs(y) * 0.25));
  }
  CHECK_NEAR(solve::log(1. + 0x1p-30), std::log1p(0x1p-30), 1e-24);
  CHECK_EQUAL(solve::exp(0.), 1.);
  CHECK_EQUAL(solve::exp(-800.), 0.);
  CHECK(std::isinf(solve::exp(800.)) && std::isnan(solve::exp(NAN)));
}

TEST(powers_of_four) {
  for (const double x : {1e-300, 1e-8, 0.9, 1., 3.9, 4., 1e8, 1e300}) {
    const double scale = solve::power_of_four(x);
    CHECK(x / scale >= 0.25 && x / scale < 4.);
    CHECK_EQUAL(std::sqrt(scale) * std::sqrt(scale), scale);
  }
}
