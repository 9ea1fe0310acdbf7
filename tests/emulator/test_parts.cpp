// How work is shared out among blocks: parts of chunks, how many there are, and columns and rows behind the first 2^31
// elements, as a model has that needs one GPU for itself.
#include <sys/mman.h>

#include "check.h"
#include "cuda/columns.cuh"
#include "orders.h"

using namespace data;

constexpr int64_t huge = int64_t(1) << 31;

TEST(cover_their_chunk) {
  for (const int64_t begin : {int64_t(0), huge - 16, huge * 512})
    for (const int64_t length : {int64_t(0), int64_t(1), int64_t(128), int64_t(129), int64_t(16384), huge * 4 + 5})
      for (int halvings = 0; halvings < 6; ++halvings) {
        const cuda::Parts parts = {nullptr, halvings};
        const Chunk chunk = {7, begin, begin + length};
        int64_t at = begin;
        for (int64_t i = 0; i < int64_t(1) << halvings; ++i) {
          const Chunk part = parts.of(chunk, (int64_t(5) << halvings) + i);  // of the sixth chunk
          CHECK_EQUAL(part.segment, chunk.segment);
          CHECK_EQUAL(part.begin, at);
          CHECK(part.begin == chunk.end || (part.begin - begin) % 128 == 0);
          CHECK(part.end >= part.begin);
          at = part.end;
        }
        CHECK_EQUAL(at, chunk.end);
      }
}

TEST(are_as_many_as_the_device_wants) {
  const cuda::Units units = {1, 1, 256, cuda::part_columns(4)};
  const cuda::Places places = {132, 528};
  CHECK_EQUAL(units.halvings({6104, 100'000'000}, places), 0);
  CHECK_EQUAL(units.halvings({611, 10'000'000}, places), 3);  // parts of 2048 columns, not less
  CHECK_EQUAL(units.halvings({62, 1'000'000}, places), 3);
  CHECK_EQUAL(units.halvings({49, 100'000}, places), 2);  // 49 are fewer than there are multiprocessors
  CHECK_EQUAL(units.halvings({1, 100}, places), 0);
  const cuda::Units many = {5, 8, 256, cuda::part_columns(4)};
  CHECK_EQUAL(many.halvings({611, 10'000'000}, places), 0);
  CHECK_EQUAL(many.halvings({huge, huge * 16384}, places), 0);
}

TEST(are_not_more_than_a_grid_has_blocks) {
  float found = 0.f;
  const Finite s = {1, 1, {nullptr, Type::float32, 0, 0, nullptr, 0, 0}, &found, nullptr};
  CHECK(cuda::finite(s, {huge, huge * 16384}, nullptr) != nullptr);
}

TEST(occupancy_is_asked_for_once) {
  std::vector<float> grads(16, 1.f);
  const Chunk chunk = {0, 0, 16};
  float found = 0.f;
  const Finite s = {1, 1, {grads.data(), Type::float32, 16, 16, nullptr, 0, 0}, &found, &chunk};
  check_launched(cuda::finite(s, {1, 16}, nullptr));
  const int before = emulator::occupancy_questions;
  CHECK(before > 0);
  check_launched(cuda::finite(s, {1, 16}, nullptr));
  CHECK_EQUAL(emulator::occupancy_questions, before);
}

namespace {

// Where the columns of one tensor lie in rows that are mostly not there.
struct Place {
  int64_t row, begin, columns = 1002;
  Chunk chunk() const { return {0, begin, begin + columns}; }
  cuda::Extent extent() const { return {1, row}; }
};
constexpr Place near_by = {1024, 16}, far_away = {huge + 4096, huge + 64};

// Rows of which the system makes only the pages that are used.
class Rows {
 public:
  Rows(Random& random, int64_t rows, const Place& place)
      : rows_(rows), place_(place), bytes_(size_t(rows * place.row) * sizeof(float)) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED);
    data_ = static_cast<float*>(memory);
    for (int64_t k = 0; k < rows; ++k)
      for (int64_t p = 0; p < place.columns; ++p) at(k, p) = float(random.uniform());
  }
  Rows(const Rows&) = delete;
  ~Rows() { munmap(data_, bytes_); }
  float* get() const { return data_; }
  std::vector<float> values() const {
    std::vector<float> all;
    for (int64_t k = 0; k < rows_; ++k)
      for (int64_t p = 0; p < place_.columns; ++p) all.push_back(at(k, p));
    return all;
  }

 private:
  float& at(int64_t k, int64_t p) const { return data_[k * place_.row + place_.begin + p]; }

  int64_t rows_;
  Place place_;
  size_t bytes_;
  float* data_;
};

constexpr int64_t rows = 2, tasks = 2;

Gradients gradients_in(const Rows& grads, const Place& place) {
  return {grads.get(), Type::float32, tasks * place.row, place.row, nullptr, 0, 0};
}
void append(std::vector<float>& to, const std::vector<float>& values) {
  to.insert(to.end(), values.begin(), values.end());
}

std::vector<float> of_combine_and_finite(const Place& place) {
  Random random;
  const Rows grads(random, rows * tasks, place), out(random, rows, place);
  const std::vector<double> weights = random.weights(rows * tasks);
  const Chunk chunk = place.chunk();
  check_launched(cuda::combine(
      {rows, tasks, gradients_in(grads, place), out.get(), Type::float32, place.row, weights.data(), &chunk},
      place.extent(), nullptr));
  std::vector<float> found(rows, 0.f);
  grads.get()[3 * place.row + place.begin + 1001] = INFINITY;  // the last column of the last task of row 1
  check_launched(
      cuda::finite({rows, tasks, gradients_in(grads, place), found.data(), &chunk}, place.extent(), nullptr));
  CHECK_EQUAL(found, (std::vector<float>{0.f, 1.f}));
  return out.values();
}

std::vector<float> of_transfer(const Place& place) {
  Random random;
  const Rows theta(random, rows, place);
  const std::vector<double> mix = random.mix(rows, false);
  const Chunk chunk = place.chunk();
  check_launched(cuda::transfer({rows, theta.get(), Type::float32, place.row, {}, &chunk, step_tile}, {1, mix.data()},
                                place.extent(), nullptr));
  return theta.values();
}

std::vector<float> of_step(const Place& place, bool mixed) {
  Random random;
  const Rows theta(random, rows, place), first(random, rows, place), second(random, rows, place),
      grads(random, rows * tasks, place);
  const std::vector<double> weights = random.weights(rows * tasks), mix = random.mix(rows, false);
  const Chunk chunk = place.chunk();
  std::vector<double> fields(num_fields, 0.5);
  std::vector<float> number(rows, 3.f);
  std::vector<StepConstants> constants(rows);
  const StepCounters counters = {rows,    1, Rule::adam, fields.data(), nullptr,
                                 nullptr, 0, nullptr,    number.data(), constants.data()};
  Step s = {};
  s.rows = rows, s.tasks = tasks, s.segments = 1, s.rule = Rule::adam, s.order = Order::consensus;
  s.theta = theta.get(), s.moments[0] = first.get(), s.moments[1] = second.get(), s.row = place.row;
  s.grads = gradients_in(grads, place), s.weights = weights.data(), s.constants = constants.data();
  s.chunks = &chunk, s.tile = step_tile;
  check_launched(cuda::step(s, counters, {mixed ? 1 : 0, mix.data()}, place.extent(), nullptr));
  std::vector<float> all = theta.values();
  append(all, first.values()), append(all, second.values());
  return all;
}

std::vector<float> of_priority(const Place& place) {
  Random random;
  const Rows grads(random, tasks, place), out(random, 1, place);
  const std::vector<int64_t> owners = {0, 1, -1};
  const PriorityRecord record = {0, 0, 3, place.begin, place.columns / 3, 1};
  const Chunk chunk = place.chunk();
  std::vector<double> dots(tasks * tasks, NAN), coefficients(tasks, NAN);
  check_launched(cuda::priority({tasks, grads.get(), Type::float32, place.row, out.get(), Type::float32, owners.data(),
                                 &record, &chunk, dots.data(), coefficients.data()},
                                1, place.extent(), nullptr));
  std::vector<float> all = out.values();
  append(all, {dots.begin(), dots.end()}), append(all, {coefficients.begin(), coefficients.end()});
  return all;
}

}  // namespace

TEST(columns_and_rows_behind_two_to_the_31) {
  CHECK_EQUAL(of_combine_and_finite(far_away), of_combine_and_finite(near_by));
  CHECK_EQUAL(of_transfer(far_away), of_transfer(near_by));
  for (const bool mixed : {false, true}) CHECK_EQUAL(of_step(far_away, mixed), of_step(near_by, mixed));
  CHECK_EQUAL(of_priority(far_away), of_priority(near_by));
}
