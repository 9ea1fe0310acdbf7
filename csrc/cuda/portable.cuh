// The one place that knows who compiles the kernels: nvcc, or g++ with the emulator of the tests (tests/emulator).
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

namespace mt2o {

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
                   Arguments&&... arguments) {
  kernel<<<grid, block, 0, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}

// The block's shared memory: one T for each kernel that asks for it.
template <class T>
__device__ __forceinline__ T& block_shared() {
  __shared__ T storage;
  return storage;
}

// What nvcc cannot know of an address that was read from a table; it then loads faster.
template <class T>
__device__ __forceinline__ const T* in_global_memory(const T* pointer) {
  return static_cast<const T*>(__cvta_global_to_generic(__cvta_generic_to_global(pointer)));
}

// A store that other threads, of any block, may do at the same time with the same value.
__device__ __forceinline__ void store_same(float* to, float value) { *static_cast<volatile float*>(to) = value; }

}  // namespace mt2o
#else
#include "emulator.h"  // launch and block_shared, in namespace mt2o

namespace mt2o {

template <class T>
const T* in_global_memory(const T* pointer) {
  return pointer;
}

inline void store_same(float* to, float value) { __atomic_store(to, &value, __ATOMIC_RELAXED); }

}  // namespace mt2o
#endif

namespace mt2o {

// Memory is read again behind this: the compiler keeps nothing of it in registers.
__device__ __forceinline__ void forget_memory() { asm volatile("" ::: "memory"); }

}  // namespace mt2o
