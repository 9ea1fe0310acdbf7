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

  void resume();                // runs it until it suspends itself, or another that it hands over to does
  static void suspend();        // back to who resumed
  void hand_over(Fiber& next);  // from the running fiber, this one, to another: half the way of suspend and resume

 private:
  static void start();
  void leave(void* to);

  void (*body_)();
  char* stack_;
  void* stack_pointer_;
  void* asan_stack_ = nullptr;
  void* tsan_fiber_;
};

}  // namespace emulator
