// Runs CUDA kernels on the CPU: csrc/cuda includes this file where nvcc does not compile it (see README.md).
//
// Every CUDA thread is a fiber of the calling thread.  The blocks of a grid run one after another; in a block, a warp
// runs until all of its threads wait at a barrier or have returned, then the next one.  What a kernel does wrong is a
// Violation, thrown from launch(); what sanitizers find, they report themselves.
#pragma once
#include <cuda_runtime.h>

#include <source_location>
#include <stdexcept>
#include <tuple>
#include <type_traits>

namespace emulator {

using Site = std::source_location;  // of a barrier or shuffle

struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The order in which blocks, warps of a block and threads of a warp take their turns.
enum class Order { forward, reverse, shuffled };
struct Options {
  Order order = Order::forward;
  unsigned seed = 0;
};
inline Options options;

constexpr int num_multiprocessors = 4;        // a device so small keeps grids small, and its loops run more than once
constexpr int blocks_of_multiprocessor = 2;   // of every kernel
inline int occupancy_questions = 0;           // how many times the runtime was asked for that
constexpr size_t max_parameter_bytes = 4096;  // of a kernel, on every architecture
constexpr size_t max_shared_bytes = size_t(48) << 10;  // of a block, declared with a size known at compile time

cudaError_t run(dim3 grid, dim3 block, void (*thread)(void*), void* closure);
void* shared_memory(const void* key, size_t size, size_t alignment);

// Throws Violation, and returns cudaErrorInvalidConfiguration for a grid that no device takes.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t, Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "parameters of a kernel are copied as bytes");
  static_assert((sizeof(Parameters) + ... + 0) <= max_parameter_bytes, "too many bytes of parameters");
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  } call = {kernel, {static_cast<Parameters>(arguments)...}};
  const auto thread = [](void* closure) {
    const Call& call = *static_cast<Call*>(closure);
    std::apply(call.kernel, call.arguments);
  };
  return run(grid, block, thread, &call);
}

// The block's shared memory: one T for each type that a kernel asks for, filled with NaN.
template <class T>
T& block_shared() {
  static_assert(std::is_trivially_default_constructible_v<T>, "shared memory begins without a value");
  static const char key = 0;
  return *static_cast<T*>(shared_memory(&key, sizeof(T), alignof(T)));
}

}  // namespace emulator

namespace mt2o {
using emulator::block_shared;
using emulator::launch;
}  // namespace mt2o

#include "language.h"
