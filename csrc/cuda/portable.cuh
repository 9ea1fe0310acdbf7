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

// A store that other threads, of any block, may do at the same time with the same value.
__device__ __forceinline__ void store_same(float* to, float value) { *static_cast<volatile float*>(to) = value; }

}  // namespace mt2o
#else
#include "emulator.h"  // launch and block_shared, in namespace mt2o

namespace mt2o {

inline void store_same(float* to, float value) { __atomic_store(to, &value, __ATOMIC_RELAXED); }

}  // namespace mt2o
#endif

namespace mt2o {

// Multiprocessors of the current device.
inline cudaError_t count_multiprocessors(int& count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error != cudaSuccess ? error : cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
}

}  // namespace mt2o
