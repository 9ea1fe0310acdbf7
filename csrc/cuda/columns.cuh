// What the element-wise kernels share: loads and stores of sixteen bytes, and which block works on which columns.
#pragma once
#include <type_traits>

#include "../core/dtypes.h"
#include "../core/gradients.h"
#include "kernels.h"
#include "portable.cuh"

namespace mt2o::cuda {

// V neighbouring columns of one row.
template <class T, int V>
struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Pack {
  T of[V];
};

template <int V, class T>
__device__ __forceinline__ Pack<Scalar<T>, V> load(const T* from) {
  const Pack<T, V> stored = *reinterpret_cast<const Pack<T, V>*>(from);
  Pack<Scalar<T>, V> x;
#pragma unroll
  for (int i = 0; i < V; ++i) x.of[i] = widened(stored.of[i]);
  return x;
}
// Zeros where there is nothing to load: nullptr, which is so for all threads of a block or for none.
template <int V, class T>
__device__ __forceinline__ Pack<Scalar<T>, V> load_if_there(const T* from) {
  Pack<Scalar<T>, V> x = {};
  if (from) x = load<V>(in_global_memory(from));
  return x;
}
template <class T, class N, int V>
__device__ __forceinline__ void store(T* to, const Pack<N, V>& x) {
  Pack<T, V> stored;
#pragma unroll
  for (int i = 0; i < V; ++i) stored.of[i] = Rounded<T>::of(x.of[i]);
  *reinterpret_cast<Pack<T, V>*>(to) = stored;
}
// The same, to global memory only, for values that come out of a loop or of a conversion: of these, nvcc takes a plain
// store of eight or sixteen bytes apart (13.0, for every GPU below sm_100).
template <class T, class N, int V>
__device__ __forceinline__ void store_whole(T* to, const Pack<N, V>& x) {
  constexpr int size = V * sizeof(T);
  if constexpr (size % sizeof(uint2) == 0) {
    using Words = std::conditional_t<size % sizeof(uint4) == 0, uint4, uint2>;
    Pack<T, V> stored;
    store(stored.of, x);
#pragma unroll
    for (int i = 0; i < size / int(sizeof(Words)); ++i)
      __stwb(reinterpret_cast<Words*>(to) + i, reinterpret_cast<const Words*>(stored.of)[i]);
  } else {
    store(to, x);
  }
}

// Columns that make sixteen bytes.
template <class T>
constexpr int wide = 16 / sizeof(T);

template <int V>
struct Width {
  static constexpr int columns = V;
};

// body(Width<V>{}, p) by the threads of a block, for the columns [begin, end): V at a time, the rest one by one.
// begin is a multiple of 16.
template <int V, class Body>
__device__ __forceinline__ void for_columns(int64_t begin, int64_t end, Body body) {
  const int64_t whole = begin + (end - begin) / V * V, rest = whole + int64_t(threadIdx.x);
  for (int64_t p = begin + int64_t(threadIdx.x) * V; p < whole; p += int64_t(blockDim.x) * V) body(Width<V>{}, p);
  if (rest < end) body(Width<1>{}, rest);
}

// Chunks cut into parts, so that a small model too gives every multiprocessor something to do.  Element-wise results do
// not depend on the parts.
struct Parts {
  const Chunk* chunks;
  int64_t count;  // of all parts
  int64_t per_chunk;

  __device__ __forceinline__ Chunk operator[](int64_t part) const {
    const Chunk chunk = chunks[part / per_chunk];
    constexpr int64_t unit = 128;  // keeps parts aligned
    const int64_t columns = chunk.end - chunk.begin,
                  length = (columns + per_chunk * unit - 1) / (per_chunk * unit) * unit;
    const int64_t begin = least(chunk.begin + part % per_chunk * length, chunk.end);
    return {chunk.segment, begin, least(begin + length, chunk.end)};
  }
};
inline Parts parts_of(const Chunk* chunks, Extent extent) {
  constexpr int64_t columns = 2048, most = 8;
  const int64_t wanted = extent.columns / extent.chunks / columns;
  const int64_t per_chunk = wanted < 1 ? 1 : least(wanted, most);
  return {chunks, extent.chunks * per_chunk, per_chunk};
}

inline Problem described(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// f(Apart<...>{}): each kernel that reads gradients is compiled for both ways in which they lie.
template <bool A>
struct Apart {
  static constexpr bool value = A;
};
template <class F>
Problem with_place(const Gradients& grads, F f) {
  return lie_apart(grads) ? f(Apart<true>{}) : f(Apart<false>{});
}

// Launches blocks of `threads` that share out so many units of work among themselves, in strides of the grid.
template <class... Parameters, class... Arguments>
Problem launch_units(void (*kernel)(Parameters...), int64_t units, int threads, Stream stream,
                     Arguments&&... arguments) {
  int multiprocessors = 0;
  if (const cudaError_t error = count_multiprocessors(multiprocessors); error != cudaSuccess) return described(error);
  const int64_t resident = int64_t(multiprocessors) * (2048 / threads);
  const dim3 grid(static_cast<unsigned>(least(units, resident)));
  return described(launch(kernel, grid, dim3(static_cast<unsigned>(threads)), static_cast<cudaStream_t>(stream),
                          static_cast<Arguments&&>(arguments)...));
}

}  // namespace mt2o::cuda
