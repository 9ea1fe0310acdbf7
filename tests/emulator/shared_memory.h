// The shared memory of the running block: filled with NaN, with zones around each object that nobody may touch.
#pragma once
#include <cstddef>

namespace emulator {

class SharedMemory {
 public:
  ~SharedMemory();
  void begin_launch();
  void begin_block();
  // The block's object of that key, or nullptr and the reason.
  void* object(const void* key, size_t size, size_t alignment, const char** reason);
  // Whether a thread of the block wrote into a zone.
  bool damaged() const;

 private:
  struct Object {
    const void* key;
    unsigned char* begin;
    size_t size;
  };
  static constexpr size_t max_objects = 32;

  unsigned char* arena_ = nullptr;
  size_t used_ = 0, block_bytes_ = 0;
  Object objects_[max_objects];
  size_t num_objects_ = 0;
};

}  // namespace emulator
