// A function on a stack of its own, which runs until it suspends itself and goes on where it stopped.
#pragma once
#include <cstddef>

namespace emulator {

class Fiber {
 public:
  explicit Fiber(void (*body)());  // body must not return
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void resume();          // runs it until it suspends itself
  static void suspend();  // back to who resumed the running fiber

 private:
  static void start();

  void (*body_)();
  char* stack_;
  void* stack_pointer_;
  void* asan_stack_ = nullptr;
  void* tsan_fiber_;
};

}  // namespace emulator
