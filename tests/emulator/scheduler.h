// Runs the threads of one block: warp after warp, each until all of its threads wait for others or have returned.
#pragma once
#include <array>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"
#include "shared_memory.h"

namespace emulator {

struct Thread {
  enum State { ready, at_block_barrier, at_warp_barrier, returned };

  explicit Thread(void (*body)()) : fiber(body) {}

  Fiber fiber;
  State state = returned;
  uint3 index = {};
  unsigned number = 0;    // in its block
  Site site;              // where it waits,
  unsigned mask = 0;      // for which lanes,
  uint64_t value = 0;     // and what it tells them
  unsigned arrivals = 0;  // at warp barriers
  char order[2] = {};     // for ThreadSanitizer: its odd and its even arrivals,
  char gathered = 0;      // and those of all lanes that it met last, if it was the first to go on
};

struct Warp {
  uint64_t values[32];  // what the lanes told each other last
  char* order[32];      // with which arrivals
  char* gathered[32];   // by the first lane of a mask: where the arrivals of all in it were gathered, or nullptr
};

// The fibers and what they share.  ThreadSanitizer sees fibers, not CUDA threads: neighbouring blocks run on different
// fibers, so that what only blocks could race for shows too.
struct Team {
  std::vector<std::unique_ptr<Thread>> threads;
  Warp warps[32];
  char order[2];          // of the odd and the even barriers of the block
  unsigned barriers = 0;  // passed
  unsigned votes = 0;     // at the last one
};

class Scheduler {
 public:
  cudaError_t run(dim3 grid, dim3 block, void (*thread)(void*), void* closure);

  // Called by the running thread.
  Thread& thread() { return *running_; }
  unsigned meet_block(bool value, const Site& at);
  Lanes meet_warp(unsigned mask, uint64_t value, bool fence, const Site& at);
  void* shared_object(const void* key, size_t size, size_t alignment);
  [[noreturn]] void violation(const char* what, const Site* at);

 private:
  static void thread_main();
  void pass_on();
  void run_grid(dim3 grid, dim3 block);
  void run_block(uint3 index);
  void run_warp(unsigned warp);
  Thread* next_of_warp();
  bool open_warp(unsigned warp);
  bool open_block();
  void see_lanes(Warp& warp, unsigned mask);
  bool all_there(unsigned warp, const Thread& first) const;
  [[noreturn]] void stuck(const char* what) const;
  Thread& at(unsigned number) const { return *team_->threads[number]; }
  unsigned num_warps() const { return (count_ + 31) / 32; }
  unsigned lanes_of(unsigned warp) const { return count_ - warp * 32 < 32 ? count_ - warp * 32 : 32; }
  std::vector<unsigned> arranged(unsigned count);
  template <class Numbers>
  void arrange(Numbers& numbers);

  Team teams_[2];
  Team* team_ = teams_;
  Thread* running_ = nullptr;
  std::array<unsigned char, 32> lanes_ = {};  // of the warp that runs, in the order of their turns
  unsigned warp_ = 0, turn_ = 0;              // its number, and of these turns the next
  unsigned count_ = 0;                        // threads of a block
  unsigned unfinished_ = 0;
  SharedMemory shared_;
  std::mt19937 random_;
  void (*body_)(void*) = nullptr;
  void* closure_ = nullptr;
  char launch_begin_ = 0, launch_end_ = 0;  // for ThreadSanitizer
  bool failed_ = false;
  char message_[1024];
};

}  // namespace emulator
