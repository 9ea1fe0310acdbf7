// What the element-wise kernels share: loads and stores of sixteen bytes, and which block works on which columns.
#pragma once
#include <type_traits>

#include "../core/dtypes.h"
#include "../core/gradients.h"
#include "kernels.h"
#include "places.cuh"
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

// Chunks cut into 2^halvings parts each, so that a small model too gives every multiprocessor something to do.
// Element-wise results do not depend on the parts.
struct Parts {
  const Chunk* chunks;
  int halvings;

  // Parts begin at multiples of 128 columns of their chunk; the last ones may be empty.
  MT2O_HD_MEMBER Chunk of(const Chunk& chunk, int64_t part) const {
    constexpr int unit = 7;
    const int64_t length = (chunk.end - chunk.begin + (int64_t(1) << (halvings + unit)) - 1) >> (halvings + unit)
                                                                                                    << unit;
    const int64_t begin = least(chunk.begin + (part & ((int64_t(1) << halvings) - 1)) * length, chunk.end);
    return {chunk.segment, begin, least(begin + length, chunk.end)};
  }
  __device__ __forceinline__ Chunk operator[](int64_t part) const { return of(chunks[part >> halvings], part); }
};

// What a launch over parts is made of: a block of so many threads for each part, row and task.
struct Units {
  int64_t rows, tasks;
  int threads;
  int64_t columns;  // of a part, at least: what the start of a block is worth

  // Halves chunks until there are several blocks for each place that the device has for one, of which the last ones
  // leave few places empty; a model too small for all multiprocessors, further.
  int halvings(Extent extent, const Places& places) const {
    int count = 0;
    const auto blocks = [&] { return (extent.chunks * rows * tasks) << count; };
    const auto longer_than = [&](int64_t length) { return extent.columns / extent.chunks >> (count + 1) >= length; };
    while (blocks() < 8 * places.blocks && longer_than(columns)) ++count;
    while (blocks() < places.multiprocessors && longer_than(columns / 4)) ++count;
    return count;
  }
};
// Of columns whose numbers have so many bytes: two loads of sixteen bytes for each of 256 threads, and a little less,
// as not all chunks are whole.
constexpr int64_t part_columns(int bytes) { return 7680 / bytes; }

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
  Places places;
  if (const cudaError_t error = find_places(reinterpret_cast<const void*>(kernel), threads, places))
    return described(error);
  const dim3 grid(static_cast<unsigned>(least(units, places.blocks)));
  return described(launch(kernel, grid, dim3(static_cast<unsigned>(threads)), static_cast<cudaStream_t>(stream),
                          static_cast<Arguments&&>(arguments)...));
}

// The same with a block for each unit of parts: x is the part, y the row, z the task.  Parts are the last argument.
template <class... Parameters, class... Arguments>
Problem launch_parts(void (*kernel)(Parameters...), const Units& units, const Chunk* chunks, Extent extent,
                     Stream stream, Arguments&&... arguments) {
  Places places;
  if (const cudaError_t error = find_places(reinterpret_cast<const void*>(kernel), units.threads, places))
    return described(error);
  const Parts parts = {chunks, units.halvings(extent, places)};
  const int64_t count = extent.chunks << parts.halvings;
  if (count > INT32_MAX) return "more chunks than a grid has blocks";
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(units.rows), static_cast<unsigned>(units.tasks));
  return described(launch(kernel, grid, dim3(static_cast<unsigned>(units.threads)), static_cast<cudaStream_t>(stream),
                          static_cast<Arguments&&>(arguments)..., parts));
}

}  // namespace mt2o::cuda
