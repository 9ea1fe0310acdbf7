// Every CUDA kernel on every type, on tensors with tails: a short program for compute-sanitizer, under which torch
// would take minutes.  Whether results are right is for the tests; here each array is an allocation of its own that
// ends with its last element, so that memcheck sees whoever goes past it, and results that nobody wrote are counted.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "core/gram.h"
#include "core/layout.h"
#include "core/rules.h"
#include "cuda/kernels.h"
#include "cuda/portable.cuh"

namespace mt2o {  // not `using` it: nvcc includes more of CUDA's headers behind this file, which would see its names
namespace {

int kernels = 0, wrong = 0;

void check(const char* problem, const char* what) {
  ++kernels;
  if (problem == nullptr) return;
  ++wrong;
  std::printf("%s: %s\n", what, problem);
}

#if defined(MT2O_EMULATED)
void* allocate(size_t size) { return std::aligned_alloc(256, (size + 255) / 256 * 256); }
void copy(void* to, const void* from, size_t size) { std::memcpy(to, from, size); }
void release(void* memory) { std::free(memory); }
void wait() {}
#else
void demand(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("CUDA: %s\n", cudaGetErrorString(error));
  std::exit(2);
}
void* allocate(size_t size) {
  void* memory = nullptr;
  demand(cudaMalloc(&memory, size));
  return memory;
}
void copy(void* to, const void* from, size_t size) { demand(cudaMemcpy(to, from, size, cudaMemcpyDefault)); }
void release(void* memory) { demand(cudaFree(memory)); }
void wait() { demand(cudaDeviceSynchronize()); }
#endif

// A copy of host values in the device's memory.
template <class T>
class Array {
 public:
  explicit Array(const std::vector<T>& values) : size_(values.size()), memory_(allocate(values.size() * sizeof(T))) {
    copy(memory_, values.data(), size_ * sizeof(T));
  }
  Array(const Array&) = delete;
  ~Array() { release(memory_); }
  T* get() const { return static_cast<T*>(memory_); }
  std::vector<T> values() const {
    wait();
    std::vector<T> host(size_);
    copy(host.data(), memory_, size_ * sizeof(T));
    return host;
  }

 private:
  size_t size_;
  void* memory_;
};

template <class S>
constexpr Type type_of = Type::float32;
template <>
constexpr Type type_of<double> = Type::float64;
template <>
constexpr Type type_of<bfloat16> = Type::bfloat16;
template <>
constexpr Type type_of<float16> = Type::float16;

template <class S>
using Scalar = decltype(widened(S()));

// Around a group of sixteen columns, several chunks, and an empty tensor.
const std::vector<int64_t> numels = {1, 0, 15, 16, 17, 4097};

struct Tensors {
  Layout layout = plan_layout(numels);
  Array<Chunk> chunks{layout.chunks};
  int64_t columns = layout.chunks.back().end;
  cuda::Extent extent = {int64_t(layout.chunks.size()), columns};
  int64_t segments = int64_t(numels.size());

  // Rows of numbers between 0.5 and 1.5; NaN between the tensors.
  template <class S>
  std::vector<S> rows(int64_t count) const {
    std::vector<S> values((count - 1) * layout.row + columns, Rounded<S>::of(Scalar<S>(NAN)));
    for (int64_t k = 0; k < count; ++k)
      for (const Chunk& c : layout.chunks)
        for (int64_t p = c.begin; p < c.end; ++p)
          values[k * layout.row + p] = Rounded<S>::of(Scalar<S>(0.5 + double((p * 7 + k * 3) % 101) / 101.));
    return values;
  }
  template <class S>
  std::vector<S> poison(int64_t count) const {
    return std::vector<S>((count - 1) * layout.row + columns, Rounded<S>::of(Scalar<S>(NAN)));
  }
  // Counts a result that is NaN where there is a column, or not where there is none.
  template <class S>
  void expect_written(const Array<S>& array, int64_t count, const char* what) const {
    const std::vector<S> values = array.values();
    std::vector<bool> inside(layout.row, false);
    for (const Chunk& c : layout.chunks)
      for (int64_t p = c.begin; p < c.end; ++p) inside[p] = true;
    for (int64_t k = 0; k < count; ++k)
      for (int64_t p = 0; p < columns; ++p)
        if (std::isnan(double(widened(values[k * layout.row + p]))) == inside[p]) {
          ++wrong;
          std::printf("%s: row %lld, column %lld\n", what, static_cast<long long>(k), static_cast<long long>(p));
          return;
        }
  }
};

// Gradients [rows][tasks]: in one buffer, or each tensor of them in an allocation of its own; every seventh is missing.
template <class G>
class Grads {
 public:
  Grads(const Tensors& t, const std::vector<G>& values, int64_t rows, int64_t tasks, bool apart)
      : buffer_(values), where_{buffer_.get(), type_of<G>, tasks * t.layout.row, t.layout.row, nullptr, 0, 0} {
    if (!apart) return;
    std::vector<int64_t> table;
    for (int64_t i = 0; i < rows * tasks; ++i)
      for (int64_t s = 0; s < t.segments; ++s) {
        const int64_t begin = t.layout.offsets[s];
        const G* first = values.data() + i * t.layout.row + begin;
        tensors_.push_back(std::make_unique<Array<G>>(std::vector<G>(first, first + numels[s])));
        const auto address = reinterpret_cast<intptr_t>(tensors_.back()->get());
        table.push_back(i % 7 == 6 ? no_gradient : int64_t(address) - begin * int64_t(sizeof(G)));
      }
    addresses_ = std::make_unique<Array<int64_t>>(table);
    where_ = {nullptr, type_of<G>, 0, 0, addresses_->get(), tasks * t.segments, t.segments};
  }
  const Gradients& where() const { return where_; }

 private:
  Array<G> buffer_;
  std::vector<std::unique_ptr<Array<G>>> tensors_;
  std::unique_ptr<Array<int64_t>> addresses_;
  Gradients where_;
};

std::vector<double> mixes(int64_t matrices, int64_t rows) {
  std::vector<double> values(matrices * rows * rows, 0.1 / double(rows));
  for (int64_t i = 0; i < matrices * rows; ++i) values[i * rows + i % rows] += 0.9;
  return values;
}

template <class G, class O>
void combine(const Tensors& t, int64_t rows, int64_t tasks, bool apart) {
  const Grads<G> grads(t, t.rows<G>(rows * tasks), rows, tasks, apart);
  const Array<O> out(t.poison<O>(rows));
  const Array<double> weights(std::vector<double>(rows * tasks, 0.5));
  check(cuda::combine({rows, tasks, grads.where(), out.get(), type_of<O>, t.layout.row, weights.get(), t.chunks.get()},
                      t.extent, nullptr),
        "combine");
  t.expect_written(out, rows, "combine");
}

template <class G>
void finite(const Tensors& t, int64_t rows, int64_t tasks, bool apart) {
  std::vector<G> values = t.rows<G>(rows * tasks);
  values[t.columns - 1] = Rounded<G>::of(Scalar<G>(INFINITY));
  const Grads<G> grads(t, values, rows, tasks, apart);
  const Array<float> found(std::vector<float>(rows, 0.f));
  check(cuda::finite({rows, tasks, grads.where(), found.get(), t.chunks.get()}, t.extent, nullptr), "finite");
  const std::vector<float> result = found.values();
  for (int64_t k = 0; k < rows; ++k) wrong += (result[k] != 0.f) != (k == 0);
}

// apart: neither crossed nor centred.
template <class G>
void gram(const Tensors& t, int64_t rows, bool cross, bool centre, bool diagonal, bool apart = false) {
  constexpr int64_t batch = 2;
  const Grads<G> values(t, t.rows<G>(batch * rows), batch, rows, apart);
  const Array<G> others(t.rows<G>(batch * rows));
  const int64_t row = t.layout.row, chunks = t.extent.chunks, size = diagonal ? rows : rows * rows;
  Gram s = {batch,      rows,  chunks, values.where(), others.get(), row,
            rows * row, cross, centre, diagonal,       nullptr,      t.chunks.get()};
  const Array<double> partials(std::vector<double>(batch * chunks * gram_sums(s), NAN));
  const Array<double> out(std::vector<double>(batch * t.segments * size, NAN));
  s.partials = partials.get();
  check(cuda::gram(s, out.get(), t.segments, nullptr), "gram");
  for (const double x : out.values()) wrong += !(std::fabs(x) < 1e6);
}

// Weightings that change gradients element by element; the second row is left as it is.
template <class G, class S>
void elements(const Tensors& t, int64_t tasks) {
  constexpr int64_t rows = 2;
  const int64_t row = t.layout.row, count = rows * tasks, chunks = t.extent.chunks;
  const Array<G> grads(t.rows<G>(count));
  const Array<S> memory(t.rows<S>(count)), last(t.rows<S>(rows));
  const Array<double> half(std::vector<double>(count, 0.5)), partials(std::vector<double>(count * chunks, NAN)),
      sums(std::vector<double>(count * t.segments, NAN));
  const Array<uint8_t> finite(std::vector<uint8_t>{1, 0});
  const Array<int64_t> key(std::vector<int64_t>{-7});
  const Elements of = {
      rows, tasks, grads.get(), type_of<G>, tasks * row, row, reinterpret_cast<bool*>(finite.get()), t.chunks.get()};
  check(cuda::track({of, memory.get(), tasks * row, row, half.get(), half.get(), true}, t.extent, nullptr), "track");
  check(cuda::excess({of, memory.get(), tasks * row, row, partials.get(), chunks}, sums.get(), t.segments, nullptr),
        "excess");
  for (const double x : sums.values()) wrong += !(x >= 0. && x < 1e6);
  check(cuda::drop_signs({of, key.get(), 1, 0.5}, t.extent, nullptr), "drop signs");
  check(cuda::feed({of, memory.get(), tasks * row, row, last.get(), row, half.get(), half.get(), half.get(), 0.5, 2.},
                   t.extent, nullptr),
        "feed");
  t.expect_written(grads, count, "elements"), t.expect_written(memory, count, "memory");
  t.expect_written(last, rows, "last");
}

void draws() {
  constexpr int64_t rows = 3, columns = 500;
  std::vector<int64_t> counted(columns);
  for (int64_t i = 0; i < columns; ++i) counted[i] = i;
  const Array<int64_t> key(std::vector<int64_t>{5}), ids(counted);
  const Array<double> numbers(std::vector<double>(rows * columns, NAN));
  Draws s = {};
  s.dims = 2, s.sizes[0] = rows, s.sizes[1] = columns, s.count = rows * columns, s.num_ids = 2;
  s.ids[0] = s.ids[1] = ids.get(), s.strides[0][0] = 1, s.strides[1][1] = 1;
  s.key = key.get(), s.numbers = numbers.get();
  check(cuda::draw(s, nullptr), "draw");
  for (const double x : numbers.values()) wrong += !(x > 0. && x < 1.);
}

// Channels of the largest tensor in its middle, 16 columns each; the others belong to none.
template <class G, class O>
void priority(const Tensors& t, int64_t tasks) {
  std::vector<PriorityRecord> table;
  std::vector<Chunk> pieces;
  for (const Chunk& c : t.layout.chunks) {
    const int64_t columns = c.end - c.begin;
    const bool owned = columns > 1000;
    const int64_t first = owned ? c.begin + 1 : c.begin, channels = owned ? columns / 16 - 1 : 1;
    const int64_t length = owned ? 16 : columns, end = first + channels * length;
    if (first > c.begin) table.push_back({-1, 0, 1, c.begin, first - c.begin, 1});
    table.push_back({owned ? 0 : -1, 0, channels, first, length, 1});
    if (end < c.end) table.push_back({-1, 0, 1, end, c.end - end, 1});
  }
  std::stable_sort(table.begin(), table.end(), [](const auto& a, const auto& b) { return a.layer < b.layer; });
  for (const PriorityRecord& r : table)
    pieces.push_back({int64_t(pieces.size()), r.offset, r.offset + r.channels * r.length});
  std::vector<int64_t> owner_of_channel;
  for (int64_t c = 0; c < t.columns; ++c) owner_of_channel.push_back(c % (tasks + 1) - 1);
  const Array<G> grads(t.rows<G>(tasks));
  const Array<O> out(t.poison<O>(1));
  const Array<PriorityRecord> records(table);
  const Array<Chunk> chunks(pieces);
  const Array<int64_t> owners(owner_of_channel);
  const int64_t count = int64_t(pieces.size());
  const Array<double> dots(std::vector<double>(count * tasks * tasks, NAN)),
      coefficients(std::vector<double>(2 * tasks, NAN));
  check(cuda::priority({tasks, grads.get(), type_of<G>, t.layout.row, out.get(), type_of<O>, owners.get(),
                        records.get(), chunks.get(), dots.get(), coefficients.get()},
                       2, {count, t.columns}, nullptr),
        "priority");
  t.expect_written(out, 1, "priority");
  for (const double c : coefficients.values()) wrong += std::isnan(c);
}

template <class S>
void transfer(const Tensors& t, int64_t rows, int64_t matrices) {
  const Array<S> theta(t.rows<S>(rows));
  const Array<double> mix(mixes(matrices, rows));
  check(cuda::transfer({rows, theta.get(), type_of<S>, t.layout.row, {}, t.chunks.get(), step_tile},
                       {matrices, mix.get()}, t.extent, nullptr),
        "transfer");
  t.expect_written(theta, rows, "transfer");
}

template <class S, class G>
void step(const Tensors& t, int64_t rows, int64_t tasks, int64_t matrices, Rule rule, Order order, bool apart,
          const Masks& masks = {}) {
  const Array<S> theta(t.rows<S>(rows)), first(t.rows<S>(rows)), second(t.rows<S>(rows)), most(t.rows<S>(rows)),
      average(t.rows<S>(rows));
  const Array<bfloat16> low(t.poison<bfloat16>(rows));
  const Grads<G> grads(t, t.rows<G>(rows * tasks), rows, tasks, apart);
  const Array<double> weights(std::vector<double>(rows * tasks, 0.5)), mix(mixes(matrices + 1, rows));
  std::vector<double> table(t.segments * num_fields, 0.);
  for (int64_t s = 0; s < t.segments; ++s) {
    double* fields = table.data() + s * num_fields;
    fields[field_lr] = 0.1, fields[field_beta1] = 0.9, fields[field_beta2] = 0.999, fields[field_eps] = 1e-8;
    fields[field_transfer] = 1., fields[field_ema] = 0.98, fields[field_amsgrad] = rule == Rule::amsgrad;
  }
  const Array<double> fields(table);
  const Array<float> steps(std::vector<float>(rows * t.segments, 3.f)), found(std::vector<float>(1, 0.f)),
      scale(std::vector<float>(1, 2.f));
  const Array<StepConstants> constants(std::vector<StepConstants>(rows * t.segments));
  const int64_t row = t.layout.row;
  const bool wide = std::is_same_v<S, double>;
  const StepCounters counters = {rows,        t.segments, rule,        fields.get(), nullptr,
                                 found.get(), 0,          scale.get(), steps.get(),  constants.get()};
  const Step s = {rows,
                  tasks,
                  t.segments,
                  rule,
                  order,
                  type_of<S>,
                  theta.get(),
                  {first.get(), second.get(), most.get()},
                  average.get(),
                  row,
                  wide ? nullptr : low.get(),
                  Type::bfloat16,
                  row,
                  grads.where(),
                  weights.get(),
                  constants.get(),
                  masks,
                  {},
                  t.chunks.get(),
                  step_tile};
  check(cuda::step(s, counters, {matrices, mix.get()}, t.extent, nullptr), "step");
  t.expect_written(theta, rows, "step: theta");
  t.expect_written(average, rows, "step: running average");
  if (!wide && !masks.bits) t.expect_written(low, rows, "step: parameters of 16 bits");
}

// Masks of tasks that lack some columns, a view by the first, scores by all, and bits that change places by these.
class SomeMasks {
 public:
  SomeMasks(const Tensors& t, int64_t tasks)
      : bytes_((t.columns + 7) / 8),
        bits_(std::vector<uint8_t>(tasks * bytes_, 0xb6)),
        whole_(std::vector<uint8_t>(t.segments, 0)) {}
  Masks get() const { return {bits_.get(), bytes_, reinterpret_cast<const bool*>(whole_.get()), true}; }
  uint8_t* bits() const { return bits_.get(); }
  int64_t bytes() const { return bytes_; }
  std::vector<uint8_t> values() const { return bits_.values(); }

 private:
  int64_t bytes_;
  Array<uint8_t> bits_, whole_;
};

template <class S, class G>
void masked(const Tensors& t, int64_t tasks, bool apart) {
  const SomeMasks masks(t, tasks);
  const int64_t row = t.layout.row, chunks = t.extent.chunks;
  const Array<G> values(t.rows<G>(1)), out(t.poison<G>(1));
  check(cuda::mask({values.get(), out.get(), type_of<G>, masks.get(), t.chunks.get()}, t.extent, nullptr), "mask");
  t.expect_written(out, 1, "mask");
  const Grads<G> grads(t, t.rows<G>(tasks), 1, tasks, apart);
  const Array<double> factors(std::vector<double>(tasks, 0.5));
  const Array<float> scores(t.poison<float>(tasks));
  check(cuda::harmony({tasks, grads.where(), values.get(), factors.get(), masks.get(), 10., false, true, scores.get(),
                       row, t.chunks.get()},
                      t.extent, nullptr),
        "harmony");
  t.expect_written(scores, tasks, "harmony");
  const Array<int32_t> counts(std::vector<int32_t>(tasks * chunks * exchange_bins, -1));
  const Array<uint64_t> state(std::vector<uint64_t>(tasks * exchange_state, 7));
  const std::vector<uint8_t> before = masks.values();
  check(cuda::exchange({tasks, chunks, 5, masks.bits(), masks.bytes(), scores.get(), row, t.chunks.get(), counts.get(),
                        state.get()},
                       nullptr),
        "exchange");
  const std::vector<uint8_t> after = masks.values();
  int64_t changed = 0;
  for (size_t i = 0; i < before.size(); ++i) changed += __builtin_popcount(unsigned(before[i] ^ after[i]));
  wrong += changed != 10 * tasks;
  step<S, G>(t, 2, tasks, 0, Rule::amsgrad, Order::consensus, apart, masks.get());
}

// Gram matrices of rows that conflict, one of which is zero.
std::vector<double> conflicts(int64_t batch, int64_t tasks) {
  std::vector<double> values(batch * tasks * tasks, -0.5 / double(tasks));
  for (int64_t i = 0; i < batch * tasks; ++i) values[i * tasks + i % tasks] = 1.;
  for (int64_t t = 0; t < tasks; ++t) values[t] = values[t * tasks] = 0.;
  return values;
}

void expect_numbers(const Array<double>& array, const char* what) {
  for (const double x : array.values()) {
    if (std::isfinite(x)) continue;
    ++wrong;
    std::printf("%s: not a number\n", what);
    return;
  }
}

void solvers(int64_t batch, int64_t tasks) {
  const int64_t scratch = solve_workspace(tasks);
  const Array<double> gram(conflicts(batch, tasks)), workspace(std::vector<double>(batch * scratch, NAN));
  const Array<double> ones(std::vector<double>(batch * tasks, 1.)), targets(std::vector<double>(batch * tasks * tasks));
  const GramProblems all = {batch, tasks, gram.get(), workspace.get(), scratch};
  std::vector<int64_t> in_turn;
  for (int64_t i = 0; i < batch * tasks * tasks; ++i) in_turn.push_back(i % tasks);
  const Array<int64_t> order(in_turn);
  const auto run = [&](const char* what, int64_t size, auto arguments) {
    const Array<double> weights(std::vector<double>(batch * size, NAN)), second(weights.values());
    check(cuda::solve(arguments(weights.get(), second.get()), nullptr), what);
    expect_numbers(weights, what);
  };
  run("minimum norm", tasks, [&](double* w, double*) { return MinimumNorm{all, ones.get(), w}; });
  run("conflict averse", tasks, [&](double* w, double*) { return ConflictAverse{all, ones.get(), 0.5, w}; });
  run("power barrier", tasks, [&](double* w, double* r) { return PowerBarrier{all, ones.get(), 0.3, w, r}; });
  run("dual cone", tasks, [&](double* w, double*) { return DualCone{all, 1, ones.get(), w}; });
  run("eigen", tasks * tasks, [&](double* v, double* e) { return Eigen{all, e, v}; });
  run("project", tasks, [&](double* w, double*) { return Project{all, order.get(), targets.get(), 0.1, w}; });
  run("descent", tasks, [&](double* w, double*) { return Descent{all, ones.get(), ones.get(), 1e-4, false, w}; });
}

// Losses that lie apart, of which one row's are not finite; more of them than one launch takes.
void small_tables(int64_t rows, int64_t tasks, int64_t segments) {
  const int64_t count = rows * tasks;
  std::vector<float> values(count, 0.5f);
  values[count - 1] = rows > 1 ? INFINITY : 1.f;
  const Array<float> scalars(values), before(std::vector<float>(rows, 0.f)), found(std::vector<float>(rows, NAN));
  const Array<double> losses(std::vector<double>(count, NAN)), sums(std::vector<double>(count * tasks, NAN)),
      filled(sums.values()), usable(losses.values()), largest(losses.values()),
      grams(std::vector<double>(count * tasks * segments, 0.25));
  const Array<uint8_t> flags(std::vector<uint8_t>(2 * rows, 2)), outcome(flags.values());
  Judge s = {};
  s.rows = rows, s.tasks = tasks, s.segments = segments, s.limit = 1e38, s.losses.table = losses.get();
  s.grams = grams.get(), s.before = before.get(), s.found = found.get();
  s.finite = reinterpret_cast<bool*>(flags.get()), s.usable = s.finite + rows;
  s.sums = sums.get(), s.filled = filled.get(), s.usable_losses = usable.get(), s.largest = largest.get();
  for (int64_t i = 0; i < count; ++i) {
    if (s.losses.count == max_scalars) {
      check(cuda::judge(s.losses, nullptr), "gather");
      s.losses.first += s.losses.count, s.losses.count = 0;
    }
    s.losses.types[s.losses.count] = uint8_t(Type::float32), s.losses.scalars[s.losses.count++] = scalars.get() + i;
  }
  check(cuda::judge(s, nullptr), "judge");
  const Array<double> weights(losses.values()), refusals(std::vector<double>(3 * rows, NAN)),
      table(std::vector<double>(4 * rows, 0.));
  const Array<float> applied(std::vector<float>(count, NAN)), settled(found.values());
  Settle w = {};
  w.rows = rows, w.tasks = w.count = tasks, w.losses.table = losses.get(), w.raw = usable.get(), w.limit = 1e38;
  w.finite = s.finite, w.usable = s.usable, w.before = found.get(), w.largest = largest.get(), w.offset = 2,
  w.divisor = 2.;
  w.weights = weights.get(), w.applied = applied.get(), w.applied_type = Type::float32;
  w.took_part = reinterpret_cast<bool*>(outcome.get()), w.refused = w.took_part + rows;
  w.refusals = refusals.get(), w.found = settled.get();
  check(cuda::settle(w, nullptr), "settle");
  const Array<int64_t> counts(std::vector<int64_t>(rows, 0));
  const Count c = {rows,        tasks, settled.get(), refusals.get(), 2,          weights.get(),
                   w.took_part, false, false,         counts.get(),   table.get()};
  check(cuda::count(c, nullptr), "count");
  for (const Array<double>* written : {&sums, &filled, &usable, &largest, &refusals}) expect_numbers(*written, "judge");
  wrong += counts.values()[rows - 1] != (rows > 1);
}

template <class G, class S>
void all_of(const Tensors& t) {
  for (const int64_t tasks : {1, 3, 6}) priority<G, S>(t, tasks), priority<G, G>(t, tasks), elements<G, S>(t, tasks);
  for (const int64_t rows : {1, 2, 5, 8, 17}) {
    for (const bool apart : {false, true}) {
      combine<G, S>(t, rows, 3, apart);
      combine<G, G>(t, rows, 2, apart);
      finite<G>(t, rows, 2, apart);
      gram<G>(t, rows, false, false, false, apart), gram<G>(t, rows, false, false, true, apart);
      for (const int64_t matrices : {int64_t(0), int64_t(1), t.segments})
        for (const Order order : {Order::consensus, Order::adapt_then_combine})
          step<S, G>(t, rows, 2, rows > 1 ? matrices : 0, Rule::amsgrad, order, apart);
    }
    gram<G>(t, rows, false, true, false);
    for (const bool centre : {false, true}) gram<G>(t, rows, true, centre, false), gram<G>(t, rows, true, centre, true);
  }
  for (int64_t rows = 4; rows <= 16; ++rows)  // a kernel for each
    for (const bool apart : {false, true}) gram<G>(t, rows, false, false, false, apart);
  for (const int64_t tasks : {1, 3, 6})
    for (const bool apart : {false, true}) masked<S, G>(t, tasks, apart);
  for (int64_t rule = 0; rule < num_rules; ++rule)
    for (const bool apart : {false, true}) step<S, G>(t, 3, 1, 1, Rule(rule), Order::consensus, apart);
}

}  // namespace

static int check_all() {
  const Tensors t;
  all_of<float, float>(t);
  all_of<double, double>(t);
  all_of<bfloat16, float>(t);
  all_of<float16, float>(t);
  for (const int64_t rows : {1, 2, 5, 8, 17, 64})
    for (const int64_t matrices : {int64_t(1), t.segments})
      transfer<float>(t, rows, matrices), transfer<double>(t, rows, matrices);
  for (const int64_t tasks : {1, 2, 3, 9}) solvers(3, tasks);
  draws();
  for (const int64_t rows : {1, 5}) small_tables(rows, 3, 40), small_tables(rows, 70, 1);
  wait();
  std::printf("%d launches of kernel families, %d wrong\n", kernels, wrong);
  return wrong == 0 ? 0 : 1;
}

}  // namespace mt2o

int main() { return mt2o::check_all(); }
