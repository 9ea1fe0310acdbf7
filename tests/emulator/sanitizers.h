// What the sanitizers must be told about fibers; nothing in a plain build.
//
// AddressSanitizer: on which stack the program runs, and what lies around shared memory.  ThreadSanitizer: one fiber of
// its own for each CUDA thread, switched without synchronization, so that nothing but barriers orders them.  The
// emulator itself is never compiled with -fsanitize=thread (its own data would be reported), but with
// MT2O_EMULATOR_TSAN.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(MT2O_EMULATOR_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace emulator::sanitizers {

#if defined(__SANITIZE_ADDRESS__)
inline void leave_stack(void** fake, const void* bottom, size_t size) {
  __sanitizer_start_switch_fiber(fake, bottom, size);
}
inline void enter_stack(void* fake, const void** old_bottom, size_t* old_size) {
  __sanitizer_finish_switch_fiber(fake, old_bottom, old_size);
}
inline void forbid(const void* begin, size_t size) { __asan_poison_memory_region(begin, size); }
inline void allow(const void* begin, size_t size) { __asan_unpoison_memory_region(begin, size); }
#else
inline void leave_stack(void**, const void*, size_t) {}
inline void enter_stack(void*, const void**, size_t*) {}
inline void forbid(const void*, size_t) {}
inline void allow(const void*, size_t) {}
#endif

#if defined(MT2O_EMULATOR_TSAN)
constexpr bool sees_races = true;
inline void* create_fiber() { return __tsan_create_fiber(0); }
// What the fiber did happens before what its destroyer does next.
inline void destroy_fiber(void* fiber) {
  void* self = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber, 0);
  __tsan_switch_to_fiber(self, 0);
  __tsan_destroy_fiber(fiber);
}
inline void* current_fiber() { return __tsan_get_current_fiber(); }
inline void switch_to(void* fiber) { __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync); }
// What was done before release(x) happens before what is done after acquire(x).
inline void release(void* x) { __tsan_release(x); }
inline void acquire(void* x) { __tsan_acquire(x); }
#else
constexpr bool sees_races = false;
inline void* create_fiber() { return nullptr; }
inline void destroy_fiber(void*) {}
inline void* current_fiber() { return nullptr; }
inline void switch_to(void*) {}
inline void release(void*) {}
inline void acquire(void*) {}
#endif

}  // namespace emulator::sanitizers
