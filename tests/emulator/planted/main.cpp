// A test of the emulator: each planted bug is caught, and by what; without a bug, all is well in every order.
//
//   mt2o_planted            all of them, each in a process of its own
//   mt2o_planted <bug>      one of them: prints what the emulator or a sanitizer says, and fails
#include <sys/wait.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "kernels.h"

using namespace planted;

namespace {

enum class Build { plain, asan, tsan };
#if defined(__SANITIZE_ADDRESS__)
constexpr Build build = Build::asan;
#elif defined(__SANITIZE_THREAD__)
constexpr Build build = Build::tsan;
extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }
#else
constexpr Build build = Build::plain;
#endif

struct Expectation {
  Bug bug;
  const char* name;
  const char *plain, *asan, *tsan;  // part of what is said in each build; nullptr where the bug may pass
};
constexpr const char *wrong = "wrong value", *race = "data race", *poisoned = "use-after-poison",
                     *diverged = "not all threads reach a barrier";

// A wrong value is one that the program itself sees, in its results.
const Expectation expectations[] = {
    {Bug::tail_overrun, "tail_overrun", nullptr, "heap-buffer-overflow", nullptr},
    {Bug::misaligned_load, "misaligned_load", nullptr, "misaligned address", nullptr},
    {Bug::divergent_barrier, "divergent_barrier", diverged, diverged, diverged},
    {Bug::barrier_after_return, "barrier_after_return", diverged, diverged, diverged},
    {Bug::no_barrier_before_read, "no_barrier_before_read", wrong, wrong, race},
    {Bug::no_barrier_before_reuse, "no_barrier_before_reuse", wrong, wrong, race},
    {Bug::no_warp_barrier, "no_warp_barrier", wrong, wrong, race},
    {Bug::barriers_of_half_warps, "barriers_of_half_warps", nullptr, nullptr, race},
    {Bug::divergent_shuffle, "divergent_shuffle", diverged, diverged, diverged},
    {Bug::caller_not_in_mask, "caller_not_in_mask", "not in the mask", "not in the mask", "not in the mask"},
    {Bug::source_not_in_mask, "source_not_in_mask", "not in its mask", "not in its mask", "not in its mask"},
    {Bug::mask_past_block, "mask_past_block", "does not have", "does not have", "does not have"},
    {Bug::shared_write_overrun, "shared_write_overrun", "past the end", poisoned, "past the end"},
    {Bug::shared_read_overrun, "shared_read_overrun", wrong, poisoned, wrong},
    {Bug::shared_uninitialised, "shared_uninitialised", wrong, wrong, wrong},
    {Bug::shared_too_large, "shared_too_large", "48 KiB", "48 KiB", "48 KiB"},
    {Bug::blocks_write_one_place, "blocks_write_one_place", wrong, wrong, race},
    {Bug::block_reads_other_block, "block_reads_other_block", wrong, wrong, race},
    {Bug::too_many_threads, "too_many_threads", "launch refused", "launch refused", "launch refused"},
    {Bug::too_many_blocks, "too_many_blocks", "launch refused", "launch refused", "launch refused"},
};

void expect(bool right, const char* what) {
  if (!right) throw std::runtime_error(std::string("wrong value: ") + what);
}
void run(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error("launch refused");
}
// Small whole numbers: their sums are exact in any order.
std::vector<float> numbers(int64_t n) {
  std::vector<float> values(n);
  for (int64_t i = 0; i < n; ++i) values[i] = float(i % 7 - 3);
  return values;
}

void check_axpy(Bug bug) {
  for (const int64_t n : {1, 3, 4, 5, 1022, 1537}) {
    const int64_t offset = bug == Bug::misaligned_load ? 1 : 0;  // a view that does not begin at a multiple of 16 bytes
    const std::vector<float> x = numbers(n + offset), before(n + offset, 1.f);
    std::vector<float> y = before;
    const unsigned block = bug == Bug::too_many_threads ? 2048 : 64;
    const dim3 grid = bug == Bug::too_many_blocks ? dim3(1, 65536) : dim3(3);
    run(emulator::launch(axpy, grid, block, nullptr, x.data() + offset, y.data() + offset, 2.f, n, bug));
    for (int64_t i = offset; i < n + offset; ++i) expect(y[i] == 1.f + 2.f * x[i], "axpy");
  }
}

void check_sums(Bug bug) {
  constexpr int blocks = 4;
  for (const int64_t n : {1, 100, 5000}) {
    const std::vector<float> x = numbers(n);
    std::vector<float> sums(blocks, NAN), squares(blocks, NAN);
    run(emulator::launch(partial_sums, blocks, threads, nullptr, x.data(), sums.data(), squares.data(), n, bug));
    float sum = 0.f, square = 0.f;
    for (int b = 0; b < blocks; ++b) sum += sums[b], square += squares[b];
    for (const float value : x) sum -= value, square -= value * value;
    expect(sum == 0.f && square == 0.f, "sums");
  }
}

void check_reversal(Bug bug) {
  const int block = bug == Bug::mask_past_block ? 48 : threads;
  const std::vector<float> x = numbers(threads);
  std::vector<float> y(threads);
  run(emulator::launch(reverse_warps, 1, block, nullptr, x.data(), y.data(), bug));
  for (int i = 0; i < block; ++i) expect(y[i] == 2.f * x[i ^ 31], "reversal");
}

void check_kernels(Bug bug) {
  using emulator::Order;
  for (const emulator::Options& options : std::vector<emulator::Options>{
           {Order::forward, 0}, {Order::reverse, 0}, {Order::shuffled, 1}, {Order::shuffled, 2}}) {
    emulator::options = options;
    check_axpy(bug);
    check_sums(bug);
    check_reversal(bug);
  }
}

// A launch after one that failed, in the same process.
void check_recovery() {
  for (int i = 0; i < 2; ++i) {
    try {
      check_sums(Bug::divergent_barrier);
    } catch (const emulator::Violation&) {
      check_kernels(Bug::none);
      continue;
    }
    throw std::runtime_error("nothing was said about a divergent barrier");
  }
}

int run_one(const std::string& name) {
  try {
    if (name == "none") check_kernels(Bug::none);
    if (name == "recovery") check_recovery();
    for (const Expectation& e : expectations)
      if (name == e.name) check_kernels(e.bug);
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

struct Outcome {
  bool passed;
  std::string said;
};
Outcome run_apart(const std::string& self, const std::string& name) {
  FILE* pipe = popen((self + " " + name + " 2>&1").c_str(), "r");
  if (!pipe) throw std::runtime_error("cannot start " + self);
  std::string said;
  char buffer[4096];
  while (const size_t count = std::fread(buffer, 1, sizeof buffer, pipe)) said.append(buffer, count);
  const int status = pclose(pipe);
  return {WIFEXITED(status) && WEXITSTATUS(status) == 0, said};
}

int failures = 0;
void report(bool good, const std::string& name, const Outcome& outcome) {
  std::printf("%s %s\n", good ? "ok     " : "FAILED ", name.c_str());
  if (good) return;
  std::printf("%s\n", outcome.said.c_str());
  ++failures;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return run_one(argv[1]);
  const std::string self = argv[0];
  for (const char* name : {"none", "recovery"}) {
    const Outcome outcome = run_apart(self, name);
    report(outcome.passed, name, outcome);
  }
  for (const Expectation& e : expectations) {
    const char* expected = build == Build::plain ? e.plain : build == Build::asan ? e.asan : e.tsan;
    if (!expected) continue;
    const Outcome outcome = run_apart(self, e.name);
    const bool of_sanitizer = outcome.said.find("Sanitizer") != std::string::npos;
    const bool named = !of_sanitizer || outcome.said.find("planted/kernels.h:") != std::string::npos;
    report(!outcome.passed && named && outcome.said.find(expected) != std::string::npos, e.name, outcome);
  }
  return failures > 0;
}
