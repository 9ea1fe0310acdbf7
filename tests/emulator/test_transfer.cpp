// Emulated `transfer`: the bits of the CPU's.
#include "check.h"
#include "orders.h"
#include "packed.h"

using namespace data;

template <class S>
static void check_transfer(int64_t rows, bool for_each_segment, bool sparse) {
  Random random;
  const Layout layout = plan_layout(numels);
  const Matrix<S> theta = random.matrix<S>(rows, layout);
  std::vector<double> mixes;
  const int64_t matrices = for_each_segment ? int64_t(numels.size()) : 1;
  for (int64_t i = 0; i < matrices; ++i) {
    const std::vector<double> mix = random.mix(rows, sparse);
    mixes.insert(mixes.end(), mix.begin(), mix.end());
  }
  Matrix<S> expected = theta;
  const Packed<S> packed(mixes, rows);
  Transfer s = {rows, expected.values.data(), type_of<S>, expected.row, packed.mix(), layout.chunks.data(), step_tile};
  kernels().transfer(s, 0, int64_t(layout.chunks.size()));
  for_orders([&] {
    Matrix<S> mixed = theta;
    s.theta = mixed.values.data();
    check_launched(cuda::transfer(s, {matrices, mixes.data()}, extent_of(layout), nullptr));
    CHECK_EQUAL(mixed.bytes(), expected.bytes());
  });
}

// One number of rows for each kernel that is compiled, and those at the edges of a block of four.
TEST(of_float) {
  for (const int64_t rows : {1, 2, 3, 8, 13, 17}) check_transfer<float>(rows, rows % 2 == 0, false);
  check_transfer<float>(5, true, true);
  check_transfer<float>(18, true, true);
}
TEST(of_double) {
  check_transfer<double>(2, false, false);
  check_transfer<double>(17, true, true);
}
