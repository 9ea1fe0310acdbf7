// How many blocks of a kernel the device holds at once.
#pragma once
#include <map>
#include <mutex>
#include <utility>

#include "portable.cuh"

namespace mt2o::cuda {

struct Places {
  int64_t multiprocessors, blocks;  // blocks: on all of them
};

inline cudaError_t ask_places(const void* kernel, int threads, int device, Places& places) {
  int multiprocessors = 0, blocks = 0;
  if (const auto error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) return error;
  if (const auto error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0)) return error;
  places = {multiprocessors, int64_t(multiprocessors) * blocks};
  return cudaSuccess;
}

// Of the current device; CUDA is asked once for each kernel, which always has so many threads in a block, and device.
inline cudaError_t find_places(const void* kernel, int threads, Places& places) {
  // Made by the first call and never destroyed: a launch may be the last thing that a process does.
  static std::mutex guard;
  static auto& known = *new std::map<std::pair<const void*, int>, Places>;
  int device = 0;
  if (const auto error = cudaGetDevice(&device)) return error;
  const std::lock_guard lock(guard);
  const std::pair key(kernel, device);
  if (const auto found = known.find(key); found != known.end()) {
    places = found->second;
    return cudaSuccess;
  }
  const cudaError_t error = ask_places(kernel, threads, device, places);
  if (error == cudaSuccess) known[key] = places;
  return error;
}

}  // namespace mt2o::cuda
