// What the tests of emulated kernels share.
#pragma once
#include "cuda/kernels.h"
#include "data.h"
#include "emulator.h"

namespace data {

// What a kernel computes and where it writes hangs by the order only where it reads what another thread may or may not
// have written yet: a wrong value in the build without sanitizers, which has all orders.  To ThreadSanitizer the order
// says which blocks have fibers of their own (README.md), and those of the reverse are those of the order itself.
inline std::vector<std::pair<emulator::Options, const char*>> orders() {
  using emulator::Order;
#if defined(__SANITIZE_ADDRESS__)
  return {{{Order::shuffled, 1}, "shuffled"}};
#elif defined(__SANITIZE_THREAD__)
  return {{{Order::forward, 0}, "forward"}, {{Order::shuffled, 1}, "shuffled"}};
#else
  return {{{Order::forward, 0}, "forward"}, {{Order::reverse, 0}, "in reverse"}, {{Order::shuffled, 1}, "shuffled"}};
#endif
}

// body() for each of several orders in which blocks, warps and threads take their turns.
template <class Body>
void for_orders(Body body) {
  for (const auto& [options, name] : orders()) {
    emulator::options = options;
    try {
      body();
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(std::string(error.what()) + " (" + name + ")");
    }
  }
}

inline cuda::Extent extent_of(const Layout& layout) { return {int64_t(layout.chunks.size()), layout.row}; }

inline void check_launched(cuda::Problem problem) {
  if (problem) throw std::runtime_error(problem);
}

}  // namespace data
