#include "fiber.h"

#include <sys/mman.h>

#include <new>

#include "sanitizers.h"

#if !defined(__x86_64__)
#error "the emulator switches stacks in x86-64 assembly"
#endif

// Saves the registers that a function must keep and the stack pointer, and goes on where another fiber did the same.
// It takes some 20 ns; swapcontext, which asks the kernel for the signal mask, takes 30 times as long.
extern "C" void mt2o_emulator_switch(void** save, void* load);
asm(R"(
.text
.type mt2o_emulator_switch, @function
mt2o_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size mt2o_emulator_switch, .-mt2o_emulator_switch
)");

namespace emulator {
namespace {

constexpr size_t stack_size = 256 << 10, guard_size = 4096, saved_registers = 6;

// Who resumes fibers: the launch, on the stack of its caller.
struct Home {
  void* stack_pointer;
  void* tsan_fiber;
  void* asan_stack;
  const void* stack;
  size_t size;
};
Home home;
Fiber* running = nullptr;
bool from_home;  // the last switch: then AddressSanitizer says which stack that is

}  // namespace

Fiber::Fiber(void (*body)()) : body_(body), tsan_fiber_(sanitizers::create_fiber()) {
  void* memory = mmap(nullptr, guard_size + stack_size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(memory);
  mprotect(stack_, guard_size, PROT_NONE);  // a stack that overflows crashes
  void** top = reinterpret_cast<void**>(stack_ + guard_size + stack_size);
  top[-2] = reinterpret_cast<void*>(&Fiber::start);  // where the first switch returns to, with an aligned stack
  stack_pointer_ = top - 2 - saved_registers;
}

Fiber::~Fiber() {
  sanitizers::destroy_fiber(tsan_fiber_);
  sanitizers::allow(stack_, guard_size + stack_size);  // frames that were left for good
  munmap(stack_, guard_size + stack_size);
}

void Fiber::start() {
  sanitizers::enter_stack(nullptr, from_home ? &home.stack : nullptr, from_home ? &home.size : nullptr);
  running->body_();
}

// Until another switch comes back.
void Fiber::leave(void* to) {
  mt2o_emulator_switch(&stack_pointer_, to);
  sanitizers::enter_stack(asan_stack_, from_home ? &home.stack : nullptr, from_home ? &home.size : nullptr);
}

void Fiber::resume() {
  running = this;
  from_home = true;
  home.tsan_fiber = sanitizers::current_fiber();
  sanitizers::leave_stack(&home.asan_stack, stack_ + guard_size, stack_size);
  sanitizers::switch_to(tsan_fiber_);
  mt2o_emulator_switch(&home.stack_pointer, stack_pointer_);
  sanitizers::enter_stack(home.asan_stack, nullptr, nullptr);
  running = nullptr;
}

void Fiber::suspend() {
  Fiber& self = *running;
  sanitizers::leave_stack(&self.asan_stack_, home.stack, home.size);
  sanitizers::switch_to(home.tsan_fiber);
  self.leave(home.stack_pointer);
}

void Fiber::hand_over(Fiber& next) {
  running = &next;
  from_home = false;
  sanitizers::leave_stack(&asan_stack_, next.stack_ + guard_size, stack_size);
  sanitizers::switch_to(next.tsan_fiber_);
  leave(next.stack_pointer_);
}

}  // namespace emulator
