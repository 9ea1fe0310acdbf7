// Random problems for the kernels, and the two ways in which their results must not differ: the instruction set and the
// number of threads.
#pragma once
#include <array>
#include <cstring>
#include <random>
#include <thread>

#include "core/layout.h"
#include "core/rules.h"
#include "cpu/dispatch.h"

namespace data {

using namespace mt2o;

// One column, around a group of sixteen, and several chunks.
inline const std::vector<int64_t> numels = {1, 15, 16, 17, 4097};

template <class S>
constexpr Type type_of = Type::float32;
template <>
constexpr Type type_of<double> = Type::float64;
template <>
constexpr Type type_of<bfloat16> = Type::bfloat16;
template <>
constexpr Type type_of<float16> = Type::float16;

// The largest relative error of rounding to S.
template <class S>
constexpr double rounding = std::is_same_v<S, double>     ? 0x1p-53
                            : std::is_same_v<S, float>    ? 0x1p-24
                            : std::is_same_v<S, bfloat16> ? 0x1p-8
                                                          : 0x1p-11;

using Bytes = std::vector<unsigned char>;

template <class S>
S rounded(double x) {
  return Rounded<S>::of(Scalar<S>(x));
}

// Rows of a layout.  The columns between segments hold a value that no kernel may use or change; behind the last column
// of the last row there is nothing, so that AddressSanitizer sees whoever goes past it.
template <class S>
struct Matrix {
  int64_t rows, columns, row;
  std::vector<S> values;
  Matrix(int64_t rows, const Layout& layout)
      : rows(rows),
        columns(layout.chunks.back().end),
        row(layout.row),
        values((rows - 1) * row + columns, rounded<S>(NAN)) {}
  S* operator[](int64_t i) { return values.data() + i * row; }
  const S* operator[](int64_t i) const { return values.data() + i * row; }
  double at(int64_t i, int64_t p) const { return widened(values[i * row + p]); }
  // Compared as bits: NaN equals NaN, and -0 is not 0.
  Bytes bytes() const {
    const auto* begin = reinterpret_cast<const unsigned char*>(values.data());
    return {begin, begin + values.size() * sizeof(S)};
  }
};

// The same task gradients twice: rows k * tasks + t of a matrix, and each tensor of them in memory of its own, which
// ends with its last element; one that is zero everywhere is not there at all.
template <class G>
class BothWays {
 public:
  BothWays(const Matrix<G>& grads, int64_t tasks, const Layout& layout)
      : buffer_{grads.values.data(), type_of<G>, tasks * grads.row, grads.row, nullptr, 0, 0},
        apart_{nullptr,
               type_of<G>,
               0,
               0,
               nullptr,
               tasks * int64_t(layout.offsets.size()),
               int64_t(layout.offsets.size())} {
    for (int64_t i = 0; i < grads.rows; ++i)
      for (size_t segment = 0; segment < layout.offsets.size(); ++segment) add(grads[i], layout, segment);
    apart_.addresses = addresses_.data();
  }
  BothWays(const BothWays&) = delete;
  std::vector<Gradients> all() const { return {buffer_, apart_}; }

 private:
  void add(const G* row, const Layout& layout, size_t segment) {
    int64_t begin = layout.offsets[segment], end = begin;
    for (const Chunk& c : layout.chunks)
      if (c.segment == int64_t(segment)) end = c.end;
    tensors_.emplace_back(row + begin, row + end);
    const auto zero = [](G x) { return widened(x) == 0; };
    const bool missing = std::all_of(tensors_.back().begin(), tensors_.back().end(), zero);
    const auto address = reinterpret_cast<intptr_t>(tensors_.back().data());
    addresses_.push_back(missing ? no_gradient : int64_t(address) - begin * int64_t(sizeof(G)));
  }

  Gradients buffer_, apart_;
  std::vector<std::vector<G>> tensors_;
  std::vector<int64_t> addresses_;
};

// Leaves some tensors of some rows without a gradient.
template <class G>
void set_some_to_zero(Matrix<G>& grads, const Layout& layout) {
  for (int64_t i = 0; i < grads.rows; ++i)
    for (const Chunk& c : layout.chunks)
      if ((i + c.segment) % 3 == 1) std::fill(grads[i] + c.begin, grads[i] + c.end, rounded<G>(0.));
}

class Random {
 public:
  double normal() { return normal_(generator_); }
  double uniform() { return uniform_(generator_); }
  std::vector<double> weights(int64_t n) {
    std::vector<double> w(n);
    for (double& x : w) x = uniform();
    return w;
  }
  template <class S>
  Matrix<S> matrix(int64_t rows, const Layout& layout, double scale = 1., double offset = 0.) {
    Matrix<S> m(rows, layout);
    for (int64_t i = 0; i < rows; ++i)
      for (const Chunk& c : layout.chunks)
        for (int64_t p = c.begin; p < c.end; ++p) m[i][p] = rounded<S>(offset + scale * normal());
    return m;
  }
  // Rows sum to one.  `sparse` leaves some rows those of the identity, and zeros in others.
  std::vector<double> mix(int64_t rows, bool sparse) {
    std::vector<double> m(rows * rows, 0.);
    for (int64_t k = 0; k < rows; ++k) {
      m[k * rows + k] = 1.;
      if (sparse && k % 3 == 0) continue;
      for (int64_t j = 0; j < rows; ++j) {
        if (j == k || (sparse && uniform() < 0.5)) continue;
        const double share = uniform() / double(rows);
        m[k * rows + j] += share, m[k * rows + k] -= share;
      }
    }
    return m;
  }

 private:
  std::mt19937_64 generator_{20240316};
  std::normal_distribution<double> normal_;
  std::uniform_real_distribution<double> uniform_;
};

constexpr int one_for_each_chunk = 0;

// body(first, last) for all chunks, shared out among threads.
template <class Body>
void with_threads(int count, const Layout& layout, Body body) {
  const int64_t chunks = int64_t(layout.chunks.size());
  if (count == one_for_each_chunk) count = int(chunks);
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back([=] { body(chunks * i / count, chunks * (i + 1) / count); });
  for (std::thread& thread : threads) thread.join();
}

// That bits do not depend on the number of threads is seen without sanitizers, where threads cost little.  Of races,
// most are seen with a thread for each chunk, since two chunks that one thread takes have none; of accesses past an
// end, none hangs by more than where a thread begins and ends.
#if defined(__SANITIZE_THREAD__)
constexpr std::array numbers_of_threads = {one_for_each_chunk};
#elif defined(__SANITIZE_ADDRESS__)
constexpr std::array numbers_of_threads = {1, one_for_each_chunk};
#else
constexpr std::array numbers_of_threads = {1, 2, 5};
#endif

// body(kernels, threads) for each instruction set of this processor and several numbers of threads.
template <class Body>
void for_levels_and_threads(Body body) {
  for (const Kernels* level : supported_kernels())
    for (const int threads : numbers_of_threads) try {
        body(*level, threads);
      } catch (const std::runtime_error& error) {
        throw std::runtime_error(std::string(error.what()) + " (" + level->name +
                                 ", threads: " + std::to_string(threads) + ")");
      }
}

}  // namespace data
