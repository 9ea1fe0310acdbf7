#include "scheduler.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <numeric>

#include "sanitizers.h"

namespace emulator {
namespace {

Scheduler scheduler;
std::mutex one_launch;  // at a time, whoever calls

bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}
std::string text(const Site& site) { return std::string(site.file_name()) + ":" + std::to_string(site.line()); }
uint3 position(unsigned number, const dim3& size) {
  return {number % size.x, number / size.x % size.y, number / size.x / size.y};
}

// What every device refuses (CUDA C++ Programming Guide, "Compute Capabilities": Technical Specifications).
bool within_limits(const dim3& grid, const dim3& block) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  return threads > 0 && threads <= 1024 && block.z <= 64 && grid.x > 0 && grid.y > 0 && grid.z > 0 &&
         grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
}

}  // namespace

cudaError_t run(dim3 grid, dim3 block, void (*thread)(void*), void* closure) {
  const std::lock_guard<std::mutex> lock(one_launch);
  return scheduler.run(grid, block, thread, closure);
}
void* shared_memory(const void* key, size_t size, size_t alignment) {
  return scheduler.shared_object(key, size, alignment);
}
unsigned meet_block(bool value, const Site& at) { return scheduler.meet_block(value, at); }
Lanes meet_warp(unsigned mask, uint64_t value, bool fence, const Site& at) {
  return scheduler.meet_warp(mask, value, fence, at);
}
int lane() { return int(scheduler.thread().number % 32); }
void violation(const char* what, const Site& at) { scheduler.violation(what, &at); }

// ---- the threads' side

void Scheduler::thread_main() {
  for (;;) {  // one block after another
    sanitizers::acquire(&scheduler.launch_begin_);
    scheduler.body_(scheduler.closure_);
    sanitizers::release(&scheduler.launch_end_);
    scheduler.running_->state = Thread::returned;
    --scheduler.unfinished_;
    scheduler.pass_on();
  }
}

// The running thread waits, or has returned: the next one of its warp goes on, or if there is none, the launch.
void Scheduler::pass_on() {
  Thread& self = *running_;
  if (Thread* next = next_of_warp())
    self.fiber.hand_over(next->fiber);
  else
    Fiber::suspend();
}

unsigned Scheduler::meet_block(bool value, const Site& at) {
  Thread& self = *running_;
  Team& team = *team_;
  char* order = &team.order[team.barriers & 1];
  self.state = Thread::at_block_barrier;
  self.site = at;
  self.value = value;
  sanitizers::release(order);
  pass_on();
  sanitizers::acquire(order);
  return team.votes;
}

Lanes Scheduler::meet_warp(unsigned mask, uint64_t value, bool fence, const Site& at) {
  Thread& self = *running_;
  Warp& warp = team_->warps[self.number / 32];
  if (!(mask >> lane() & 1)) violation("a thread is not in the mask that it waits with", &at);
  self.state = Thread::at_warp_barrier;
  self.site = at;
  self.mask = mask;
  self.value = value;
  ++self.arrivals;
  if (fence) sanitizers::release(&self.order[self.arrivals & 1]);
  pass_on();
  if (fence) see_lanes(warp, mask);
  return {warp.values, mask};
}

// Everything that the lanes did before they met happens before what the running thread does next.  The first lane that
// goes on gathers it, and the others take it from there: 32 lanes that each ask 32 others cost more than the kernels.
// All of them go on before any of them meets others again.
void Scheduler::see_lanes(Warp& warp, unsigned mask) {
  char*& gathered = warp.gathered[__builtin_ctz(mask)];
  if (gathered) return sanitizers::acquire(gathered);
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) sanitizers::acquire(warp.order[i]);
  gathered = &running_->gathered;
  sanitizers::release(gathered);
}

void* Scheduler::shared_object(const void* key, size_t size, size_t alignment) {
  const char* reason = nullptr;
  void* object = shared_.object(key, size, alignment, &reason);
  if (!object) violation(reason, nullptr);
  return object;
}

// Goes back to the launch, which throws; this thread is never resumed.
void Scheduler::violation(const char* what, const Site* at) {
  const int length =
      std::snprintf(message_, sizeof message_, "emulated CUDA kernel: %s: block (%u,%u,%u), thread (%u,%u,%u)", what,
                    blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  if (at) std::snprintf(message_ + length, sizeof message_ - length, ", at %s:%u", at->file_name(), at->line());
  failed_ = true;
  sanitizers::release(message_);
  for (;;) Fiber::suspend();
}

// ---- the launch's side

cudaError_t Scheduler::run(dim3 grid, dim3 block, void (*thread)(void*), void* closure) {
  if (!within_limits(grid, block)) return cudaErrorInvalidConfiguration;
  body_ = thread, closure_ = closure;
  count_ = block.x * block.y * block.z;
  random_.seed(options.seed);
  failed_ = false;
  for (Team& team : teams_)
    while (team.threads.size() < count_) team.threads.push_back(std::make_unique<Thread>(&thread_main));
  try {
    run_grid(grid, block);
  } catch (...) {
    for (Team& team : teams_) team.threads.clear();  // threads that did not return cannot be used again
    throw;
  }
  return cudaSuccess;
}

void Scheduler::run_grid(dim3 grid, dim3 block) {
  gridDim = grid, blockDim = block;
  shared_.begin_launch();
  sanitizers::release(&launch_begin_);
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (blocks > 1u << 20) throw Violation("emulated CUDA kernel: a grid of more than 2^20 blocks takes too long");
  for (const unsigned number : arranged(unsigned(blocks))) run_block(position(number, grid));
  sanitizers::acquire(&launch_end_);
}

std::vector<unsigned> Scheduler::arranged(unsigned count) {
  std::vector<unsigned> order(count);
  arrange(order);
  return order;
}

template <class Numbers>
void Scheduler::arrange(Numbers& numbers) {
  std::iota(numbers.begin(), numbers.end(), 0);
  if (options.order == Order::reverse) std::reverse(numbers.begin(), numbers.end());
  if (options.order == Order::shuffled) std::shuffle(numbers.begin(), numbers.end(), random_);
}

void Scheduler::run_block(uint3 index) {
  team_ = team_ == teams_ ? teams_ + 1 : teams_;
  blockIdx = index;
  shared_.begin_block();
  unfinished_ = count_;
  for (unsigned i = 0; i < count_; ++i) {
    Thread& thread = at(i);
    thread.state = Thread::ready, thread.number = i, thread.index = position(i, blockDim);
  }
  do
    for (const unsigned warp : arranged(num_warps())) run_warp(warp);
  while (unfinished_ > 0 && open_block());
  if (unfinished_ > 0) stuck("not all threads reach a barrier");
  if (shared_.damaged()) stuck("a thread wrote past the end of an object in shared memory");
}

void Scheduler::run_warp(unsigned warp) {
  warp_ = warp;
  do {
    arrange(lanes_);
    turn_ = 0;
    Thread* first = next_of_warp();
    if (!first) continue;
    first->fiber.resume();  // each hands over to the next
    if (failed_) {
      sanitizers::acquire(message_);
      throw Violation(message_);
    }
  } while (open_warp(warp));
}

// The next lane whose turn it is, now the running thread; nullptr if all have had it.
Thread* Scheduler::next_of_warp() {
  const unsigned count = lanes_of(warp_);
  while (turn_ < 32) {
    const unsigned lane = lanes_[turn_++];
    if (lane >= count || at(warp_ * 32 + lane).state != Thread::ready) continue;
    running_ = &at(warp_ * 32 + lane);
    threadIdx = running_->index;
    return running_;
  }
  return nullptr;
}

// Lets lanes go on that all wait for each other; says whether there were any.
bool Scheduler::open_warp(unsigned warp) {
  for (unsigned i = 0; i < lanes_of(warp); ++i) {
    const Thread& first = at(warp * 32 + i);
    if (first.state != Thread::at_warp_barrier || !all_there(warp, first)) continue;
    const unsigned mask = first.mask;
    team_->warps[warp].gathered[__builtin_ctz(mask)] = nullptr;
    for (unsigned j = 0; j < lanes_of(warp); ++j) {
      if (!(mask >> j & 1)) continue;
      Thread& thread = at(warp * 32 + j);
      thread.state = Thread::ready;
      team_->warps[warp].values[j] = thread.value;
      team_->warps[warp].order[j] = &thread.order[thread.arrivals & 1];
    }
    return true;
  }
  return false;
}

bool Scheduler::all_there(unsigned warp, const Thread& first) const {
  for (unsigned j = 0; j < 32; ++j) {
    if (!(first.mask >> j & 1)) continue;
    if (j >= lanes_of(warp)) stuck("a mask names lanes that the block does not have");
    const Thread& thread = at(warp * 32 + j);
    if (thread.state == Thread::returned) stuck("a mask names lanes that have returned");
    if (thread.state != Thread::at_warp_barrier || thread.mask != first.mask || !same(thread.site, first.site))
      return false;
  }
  return true;
}

bool Scheduler::open_block() {
  team_->votes = 0;
  for (unsigned i = 0; i < count_; ++i) {
    if (at(i).state != Thread::at_block_barrier) return false;
    if (!same(at(i).site, at(0).site)) return false;
    team_->votes += at(i).value != 0;
  }
  for (unsigned i = 0; i < count_; ++i) at(i).state = Thread::ready;
  ++team_->barriers;
  return true;
}

// Throws, with how many threads wait where.
void Scheduler::stuck(const char* what) const {
  std::vector<std::pair<std::string, unsigned>> places;
  for (unsigned i = 0; i < count_; ++i) {
    const Thread& thread = at(i);
    std::string place = thread.state == Thread::returned ? "have returned" : "wait at " + text(thread.site);
    if (thread.state == Thread::ready) place = "are running";
    const auto found = std::find_if(places.begin(), places.end(), [&](const auto& p) { return p.first == place; });
    if (found == places.end())
      places.emplace_back(place, 1);
    else
      ++found->second;
  }
  std::string message = std::string("emulated CUDA kernel: ") + what + ": in block (" + std::to_string(blockIdx.x) +
                        "," + std::to_string(blockIdx.y) + "," + std::to_string(blockIdx.z) + ")";
  for (const auto& [place, count] : places) message += ", " + std::to_string(count) + " threads " + place;
  throw Violation(message);
}

}  // namespace emulator
