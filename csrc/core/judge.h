// Family `judge`: the small tables of a step, K rows of T tasks.  `judge` looks whether their numbers are finite, adds
// up Gram matrices and puts harmless numbers where rows are not usable; `settle` refuses weights that are none; `count`
// counts the rows that skip the step, and why.  They hold few numbers, so that the launches would cost most: each is
// one.
#pragma once
#include "dtypes.h"

namespace mt2o {

constexpr int64_t max_scalars = 64;    // addresses that travel with a launch
constexpr float nonfinite = 1.f;       // what a row carries whose gradients or losses are not finite
constexpr double of_weighted_sum = 2;  // the same of gradients that were weighted before their backward

// Losses [K][T], float64: a table, of which entries `first` .. `first + count` are to be gathered from where they lie.
struct Losses {
  double* table;  // or nullptr: there are none
  int64_t first, count;
  const void* scalars[max_scalars];
  uint8_t types[max_scalars];
};

struct Judge {
  int64_t rows, tasks, segments;
  Losses losses;
  const double* grams;    // [K][S][T][T], of a diagonal [K][S][T]; or nullptr
  bool diagonal;          // only squares
  const float* factor;    // [1], what the gradients are times too large; or nullptr
  const float* before;    // [K], not zero where something was found before; or nullptr
  const bool* outside;    // [K][T], losses that the weighting is not defined for; or nullptr
  bool together;          // what is found in one row counts for all
  double limit;           // the largest number of the type that gradients are added up in
  float* found;           // [K]
  bool *finite, *usable;  // [K]
  double* sums;           // like one segment of grams
  double* filled;         // [K][T][T], the sums, or the identity where a row is not usable; or nullptr
  double* usable_losses;  // [K][T], the losses, or 1; or nullptr
  double* largest;        // [K][T], of weights; or nullptr
};

struct Settle {
  int64_t rows, tasks, count;  // weights [K][count], count a multiple of T
  Losses losses;
  const double* raw;            // [K][count]
  const bool *finite, *usable;  // [K] of `judge`; or nullptr: by the losses and what was found before
  const float* before;          // [K], or nullptr
  const bool* outside;          // [K][T], or nullptr
  const double* largest;        // [K][T], or nullptr: limit
  double limit, divisor;        // divisor: of the raw weights
  int64_t offset;               // what is added to the number of a refusal to become what is found
  double* weights;              // [K][count], NaN in rows that skip the step
  void* applied;                // [K][count], 0 where refused; of a type of its own
  Type applied_type;
  bool *took_part, *refused;  // [K]
  double* refusals;           // [K][3]: number (0: not refused), task, value
  float* found;               // [K]
};

struct Count {
  int64_t rows, tasks;
  const float* found;      // [K]
  const double* refusals;  // [K][3], or nullptr
  int64_t offset;          // of their numbers
  const double* weights;   // [K][T], with which losses were added up before their backward; or nullptr
  const bool* finite;      // [K], with weights: the losses were
  bool together;           // as of Judge
  bool expected;           // infinities are no surprise
  int64_t* counts;         // [K]
  double* table;           // [K][4]: reason, task, value, how many in a row; or nullptr
};

namespace judge {

constexpr int64_t lanes = 32;                // segment s is added in lane s % 32, and these in order
constexpr int64_t domain = 1, overflow = 2;  // reasons of a refusal

MT2O_HD double read(const Losses& s, int64_t i) {
  const void* at = s.scalars[i];
  switch (Type(s.types[i])) {
    case Type::float32: return *static_cast<const float*>(at);
    case Type::float64: return *static_cast<const double*>(at);
    case Type::bfloat16: return widened(*static_cast<const bfloat16*>(at));
    case Type::float16: return widened(*static_cast<const float16*>(at));
  }
  return 0.;
}
// Gathers those of rows [begin, end), every step-th of them.
MT2O_HD void gather(const Losses& s, int64_t begin, int64_t end, int64_t from, int64_t step) {
  for (int64_t i = from; i < s.count; i += step)
    if (s.first + i >= begin && s.first + i < end) s.table[s.first + i] = read(s, i);
}

MT2O_HD int64_t entries(const Judge& s) { return s.grams == nullptr ? 0 : s.diagonal ? s.tasks : s.tasks * s.tasks; }
MT2O_HD double term(const Judge& s, int64_t row, int64_t segment, int64_t entry) {
  const double x = s.grams[(row * s.segments + segment) * entries(s) + entry];
  if (s.factor == nullptr) return x;
  const double factor = double(*s.factor);
  return x / (factor * factor);
}

MT2O_HD bool are_finite(const double* values, int64_t count, int64_t from, int64_t step) {
  bool good = true;
  for (int64_t i = from; i < count; i += step) good &= is_finite(values[i]);
  return good;
}
// Of a row, every step-th number: whether they are finite.
MT2O_HD bool is_good(const Judge& s, int64_t row, int64_t from, int64_t step) {
  const bool good = are_finite(s.sums + row * entries(s), entries(s), from, step);
  return good & (s.losses.table == nullptr || are_finite(s.losses.table + row * s.tasks, s.tasks, from, step));
}
MT2O_HD void find(const Judge& s, int64_t row, bool good) {
  s.found[row] = !good ? nonfinite : s.before == nullptr ? 0.f : s.before[row];
}
MT2O_HD bool is_outside(const bool* outside, int64_t row, int64_t tasks) {
  bool any = false;
  for (int64_t t = 0; outside != nullptr && t < tasks; ++t) any |= outside[row * tasks + t];
  return any;
}
MT2O_HD bool any_found(const float* found, int64_t rows) {
  bool any = false;
  for (int64_t k = 0; k < rows; ++k) any |= found[k] != 0.f;
  return any;
}
MT2O_HD void mark(const Judge& s, int64_t row) {
  s.finite[row] = s.together ? !any_found(s.found, s.rows) : s.found[row] == 0.f;
  s.usable[row] = s.finite[row] && !is_outside(s.outside, row, s.tasks);
}
// Entry i of row k of the tables [K][T][T] and [K][T].
MT2O_HD void fill_square(const Judge& s, int64_t row, int64_t i) {
  const int64_t first = i / s.tasks, second = i % s.tasks;
  const double sum = !s.diagonal       ? s.sums[row * s.tasks * s.tasks + i]
                     : first == second ? s.sums[row * s.tasks + first]
                                       : 0.;
  s.filled[row * s.tasks * s.tasks + i] = s.usable[row] ? sum : first == second ? 1. : 0.;
}
MT2O_HD void fill_task(const Judge& s, int64_t row, int64_t task) {
  const int64_t at = row * s.tasks + task;
  if (s.usable_losses != nullptr) s.usable_losses[at] = s.usable[row] ? s.losses.table[at] : 1.;
  if (s.largest == nullptr) return;
  const double square = s.sums[s.diagonal ? at : at * s.tasks + task];
  s.largest[at] = s.limit / (double(s.tasks) * max(sqrt(square), 1.));
}

// Of a row, every step-th loss: whether they are finite.
MT2O_HD bool losses_are_good(const Settle& s, int64_t row, int64_t from, int64_t step) {
  return s.losses.table == nullptr || are_finite(s.losses.table + row * s.tasks, s.tasks, from, step);
}
MT2O_HD double weight(const Settle& s, int64_t row, int64_t i) { return s.raw[row * s.count + i] / s.divisor; }
// The first of every step-th weight that is too large or no number, `count` if there is none.
MT2O_HD int64_t first_unusable(const Settle& s, int64_t row, int64_t from, int64_t step) {
  for (int64_t i = from; i < s.count; i += step) {
    const double x = weight(s, row, i), size = x < 0. ? -x : x;
    if (!(size <= (s.largest == nullptr ? s.limit : s.largest[row * s.tasks + i % s.tasks]))) return i;
  }
  return s.count;
}
struct Outcome {
  bool took_part, refused;
  float found;  // before the weights
};
MT2O_HD Outcome outcome(const Settle& s, int64_t row, bool good_losses, int64_t unusable) {
  const float before = s.before == nullptr ? 0.f : s.before[row];
  const float found = before == 0.f && !good_losses ? nonfinite : before;
  const bool finite = s.finite == nullptr ? found == 0.f : s.finite[row];
  const bool usable = s.usable == nullptr ? finite && !is_outside(s.outside, row, s.tasks) : s.usable[row];
  const bool took_part = usable && unusable == s.count;
  return {took_part, finite && !took_part, found};
}
MT2O_HD void tell(const Settle& s, int64_t row, const Outcome& is, int64_t unusable) {
  s.took_part[row] = is.took_part, s.refused[row] = is.refused;
  double *refusal = s.refusals + row * 3, number = 0., task = 0., value = 0.;
  if (is.refused && is_outside(s.outside, row, s.tasks)) {
    int64_t t = 0;
    while (!s.outside[row * s.tasks + t]) ++t;
    number = double(domain), task = double(t), value = s.losses.table[row * s.tasks + t];
  } else if (is.refused && unusable < s.count) {
    number = double(overflow), task = double(unusable % s.tasks), value = weight(s, row, unusable);
  }
  refusal[0] = number, refusal[1] = task, refusal[2] = value;
  s.found[row] = number > 0. ? float(number + double(s.offset)) : is.found;
}
MT2O_HD void apply(const Settle& s, int64_t row, const Outcome& is, int64_t i) {
  const int64_t at = row * s.count + i;
  s.weights[at] = is.took_part ? weight(s, row, i) : __builtin_nan("");
  const double applied = is.refused ? 0. : s.weights[at];
  if (s.applied_type == Type::float32)
    static_cast<float*>(s.applied)[at] = float(applied);
  else
    static_cast<double*>(s.applied)[at] = applied;
}

// The task with the largest weight; NaN is larger than anything.
MT2O_HD int64_t heaviest(const double* weights, int64_t tasks) {
  int64_t best = 0;
  for (int64_t t = 1; t < tasks; ++t) {
    const double weight = weights[t] < 0. ? -weights[t] : weights[t],
                 most = weights[best] < 0. ? -weights[best] : weights[best];
    if (most == most && !(weight <= most)) best = t;
  }
  return best;
}
MT2O_HD void count(const Count& s, int64_t row) {
  const bool skipped = s.together ? any_found(s.found, s.rows) : s.found[row] != 0.f;
  s.counts[row] += skipped;
  if (s.table == nullptr) return;
  double *kept = s.table + row * 4, why = double(s.found[row]), task = 0., value = 0.;
  if (s.refusals != nullptr && s.refusals[row * 3] > 0.) {
    why = s.refusals[row * 3] + double(s.offset), task = s.refusals[row * 3 + 1], value = s.refusals[row * 3 + 2];
  } else if (s.weights != nullptr && why == double(nonfinite) && s.finite[row]) {
    const int64_t t = heaviest(s.weights + row * s.tasks, s.tasks);
    why = of_weighted_sum, task = double(t), value = s.weights[row * s.tasks + t];
  }
  if (s.expected && (why == double(nonfinite) || why == of_weighted_sum)) why = task = value = 0.;
  if (skipped) kept[0] = why, kept[1] = task, kept[2] = value;
  kept[3] = skipped ? kept[3] + 1. : 0.;
}

}  // namespace judge
}  // namespace mt2o
