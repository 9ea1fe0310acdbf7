// What the tests of emulated kernels share.
#pragma once
#include "cuda/kernels.h"
#include "data.h"
#include "emulator.h"

namespace data {

// body() for each of several orders in which blocks, warps and threads take their turns.
template <class Body>
void for_orders(Body body) {
  using emulator::Order;
  for (const auto& [options, name] : {std::pair<emulator::Options, const char*>{{Order::forward, 0}, "forward"},
                                      {{Order::reverse, 0}, "in reverse"},
                                      {{Order::shuffled, 1}, "shuffled"}}) {
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
