#include "shared_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#include "emulator.h"
#include "sanitizers.h"

namespace emulator {
namespace {

// ThreadSanitizer takes one address for one object: there, every block of a launch has memory of its own.
constexpr size_t arena_size = size_t(sanitizers::sees_races ? 1024 : 1) << 17;
constexpr size_t zone = 256;                   // bytes around an object
constexpr uint32_t poison = 0xffffffffu;       // NaN as a float, and as half of a double
constexpr uint32_t zone_poison = 0xfff5a5a5u;  // another one

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// Not memset: ThreadSanitizer would see it, as a write of whichever thread came first.
void fill(unsigned char* begin, size_t size, uint32_t value) {
  volatile uint32_t* words = reinterpret_cast<uint32_t*>(begin);
  for (size_t i = 0; i < size / sizeof(uint32_t); ++i) words[i] = value;
}
bool holds(const unsigned char* begin, const unsigned char* end, uint32_t value) {
  for (; begin != end; ++begin)
    if (*begin != static_cast<unsigned char>(value >> 8 * (reinterpret_cast<uintptr_t>(begin) % 4))) return false;
  return true;
}

}  // namespace

SharedMemory::~SharedMemory() {
  if (arena_) munmap(arena_, arena_size);
}

void SharedMemory::begin_launch() {
  if (!arena_) {
    void* memory =
        mmap(nullptr, arena_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    arena_ = static_cast<unsigned char*>(memory);
  }
  used_ = 0;
  begin_block();
}

void SharedMemory::begin_block() {
  if (!sanitizers::sees_races) used_ = 0;
  block_bytes_ = num_objects_ = 0;
}

// Called by threads of a kernel: no standard container, whose code ThreadSanitizer might watch.
void* SharedMemory::object(const void* key, size_t size, size_t alignment, const char** reason) {
  for (size_t i = 0; i < num_objects_; ++i)
    if (objects_[i].key == key) return objects_[i].begin;
  block_bytes_ = round_up(block_bytes_, alignment) + size;
  const size_t needed = 2 * zone + round_up(size, zone);
  if (block_bytes_ > max_shared_bytes) {
    *reason = "more than 48 KiB of shared memory";
  } else if (num_objects_ == max_objects) {
    *reason = "more than 32 objects in shared memory";
  } else if (alignment > zone) {
    *reason = "an alignment in shared memory of more than 256 bytes";
  } else if (used_ + needed > arena_size) {
    *reason = "too many blocks (under ThreadSanitizer, the shared memory of all blocks is kept until the launch ends)";
  } else {
    unsigned char* begin = arena_ + used_ + zone;
    sanitizers::allow(begin - zone, needed);
    fill(begin - zone, needed, zone_poison);
    fill(begin, size / 4 * 4, poison);
    for (size_t i = size / 4 * 4; i < size; ++i) begin[i] = static_cast<unsigned char>(poison);
    sanitizers::forbid(begin - zone, zone);
    sanitizers::forbid(begin + size, needed - zone - size);
    used_ += needed;
    objects_[num_objects_++] = {key, begin, size};
    return begin;
  }
  return nullptr;
}

bool SharedMemory::damaged() const {
  for (size_t i = 0; i < num_objects_; ++i) {
    const auto [key, begin, size] = objects_[i];
    const unsigned char* end = begin + round_up(size, zone) + zone;
    sanitizers::allow(begin - zone, size_t(end - begin) + zone);
    if (!holds(begin - zone, begin, zone_poison) || !holds(begin + size, end, zone_poison)) return true;
  }
  return false;
}

}  // namespace emulator
