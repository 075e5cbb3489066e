// Grid, block, warp: the order in which the threads of a launch run, and where they wait for each other.
//
// Each thread runs on, uninterrupted, to the next place where it waits. What it would be interrupted by on a device is
// left to the race detector to find.
#include "cuda_emulation.h"

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibers.h"
#include "order.h"
#include "races.h"

uint3 threadIdx{}, blockIdx{};
dim3 blockDim{}, gridDim{};

namespace oes::emulation {
namespace {

constexpr size_t kMostSharedBytes = 227 * 1024; // of a block on sm_90 and sm_100

struct Warp {
  uint32_t living, waiting; // lanes that have not returned; of those, lanes at a collective
  void* operands[32];
  const char* at[32]; // name of the collective
  void (*exchange[32])(void* const (&)[32], uint32_t);
  uint32_t masks[32];
};

// The launch that runs: one at a time, whichever threads of the host ask for them.
struct {
  bool running = false;
  const char* name;
  void (*call)(const void*);
  const void* body;
  Random random{0};

  // Of the block:
  int threads, current;
  int at_barrier, returned;
  uint3 indices[kMostThreads];
  Stack* stacks[kMostThreads]; // 0 for a thread that has not begun, or has returned
  bool waits[kMostThreads]; // at the barrier
  Warp warps[kMostThreads / 32];
  Ready ready;
  Stack main;
  std::string failure;
} launch;

std::string hexadecimal(uint32_t value) {
  char digits[16];
  std::snprintf(digits, sizeof(digits), "%#x", value);
  return digits;
}

void set_current(int thread) {
  launch.current = thread;
  threadIdx = launch.indices[thread];
  races::thread_runs(thread);
}

void on_new_stack();

// Changes from the current stack to that of the next thread, or to the host's where none may run.
void run_next(Stack& from) {
  if (launch.ready.empty()) {
    change_stack(from, launch.main);
    return;
  }
  const int next = launch.ready.take();
  Stack*& to = launch.stacks[next];
  if (!to) {
    to = take_stack(on_new_stack);
  }
  set_current(next);
  if (to != &from) {
    change_stack(from, *to);
  }
}

// Lets lanes go that waited at a collective together; the one that came last, if any, runs on without waiting.
void finish_collective(int warp_index, uint32_t lanes, int last_lane) {
  Warp& warp = launch.warps[warp_index];
  const int one = std::countr_zero(lanes);
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    if (warp.exchange[lane] != warp.exchange[one] || warp.masks[lane] != warp.masks[one] ||
        std::strcmp(warp.at[lane], warp.at[one]) != 0) {
      const auto lane_at = [&](int l) {
        return "thread " + described(launch.indices[warp_index * 32 + l]) + " at " + warp.at[l] + " of lanes " +
            hexadecimal(warp.masks[l]);
      };
      fail("lanes of one warp wait for each other at different places: " + lane_at(one) + ", " + lane_at(lane));
    }
  }
  if (warp.exchange[one]) {
    warp.exchange[one](warp.operands, lanes);
  } else {
    races::warp_barrier_passed(warp_index);
  }
  warp.waiting &= ~lanes;
  int others[32];
  uint32_t count = 0;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    if (const int lane = std::countr_zero(rest); lane != last_lane) {
      others[count++] = warp_index * 32 + lane;
    }
  }
  launch.random.shuffle(others, count);
  const bool first = launch.random.below(2); // before the threads of other warps, or after them
  for (uint32_t i = 0; i < count; ++i) {
    first ? launch.ready.prepend(others[i]) : launch.ready.append(others[i]);
  }
}

void current_returned() {
  ++launch.returned;
  const int warp_index = launch.current / 32;
  Warp& warp = launch.warps[warp_index];
  warp.living &= ~(1u << launch.current % 32);
  for (uint32_t rest = warp.waiting; rest;) { // perhaps they waited for this one alone
    const uint32_t lanes = warp.masks[std::countr_zero(rest)] & warp.living;
    rest &= ~lanes;
    if ((warp.waiting & lanes) == lanes) {
      finish_collective(warp_index, lanes, -1);
    }
  }
}

void run_current() {
  try {
    races::listening = true;
    launch.call(launch.body);
    races::listening = false;
    return;
  } catch (const std::exception& error) {
    launch.failure = std::string("a thread threw: ") + error.what();
  } catch (...) {
    launch.failure = "a thread threw something that is no std::exception";
  }
  races::listening = false;
  launch.failure += "; thread " + described(threadIdx);
}

// Runs threads from their start to their end on one stack, as long as those that come next have none yet.
void on_new_stack() {
  stack_entered();
  for (;;) {
    run_current();
    Stack*& own = launch.stacks[launch.current];
    Stack* stack = own;
    if (!launch.failure.empty()) {
      change_stack(*stack, launch.main);
    }
    current_returned();
    own = nullptr;
    if (!launch.ready.empty()) {
      const int next = launch.ready.take();
      set_current(next);
      if (!launch.stacks[next]) {
        launch.stacks[next] = stack;
        continue;
      }
      give_stack(stack); // when it is taken again, the loop goes on
      change_stack(*stack, *launch.stacks[next]);
    } else {
      give_stack(stack);
      change_stack(*stack, launch.main);
    }
  }
}

// Why the block stands still.
std::string standstill() {
  std::string text;
  if (launch.at_barrier) {
    int thread = 0;
    while (!launch.waits[thread]) {
      ++thread;
    }
    text = std::to_string(launch.at_barrier) + " of " + std::to_string(launch.threads) +
        " threads wait at __syncthreads, the first of them thread " + described(launch.indices[thread]);
  }
  for (int warp_index = 0; warp_index * 32 < launch.threads; ++warp_index) {
    const Warp& warp = launch.warps[warp_index];
    if (warp.waiting) {
      const int lane = std::countr_zero(warp.waiting);
      text += (text.empty() ? "" : ", ") + std::to_string(std::popcount(warp.waiting)) + " of the lanes of warp " +
          std::to_string(warp_index) + " at " + warp.at[lane] + ", the first of them thread " +
          described(launch.indices[warp_index * 32 + lane]);
      break;
    }
  }
  return text + ", for ever: " + std::to_string(launch.returned) + " threads have returned";
}

void run_block() {
  const int threads = launch.threads;
  launch.at_barrier = launch.returned = 0;
  for (int warp = 0; warp * 32 < threads; ++warp) {
    const int lanes = std::min(threads - warp * 32, 32);
    launch.warps[warp].living = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
    launch.warps[warp].waiting = 0;
  }
  renew_shared_memory();
  races::block_begins(blockIdx);
  uint16_t order[kMostThreads];
  std::iota(order, order + threads, 0);
  launch.random.shuffle(order, threads);
  launch.ready.clear();
  for (int i = 0; i < threads; ++i) {
    launch.ready.append(order[i]);
  }
  run_next(launch.main);
  if (launch.failure.empty() && launch.returned < threads) {
    launch.failure = standstill();
  }
  if (launch.failure.empty()) {
    return;
  }
  for (int thread = 0; thread < threads; ++thread) {
    launch.waits[thread] = false;
    if (Stack*& stack = launch.stacks[thread]) {
      reset_stack(stack);
      give_stack(stack);
      stack = nullptr;
    }
  }
}

std::string refusal(dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || !threads) {
    return "expected at least one block of at least one thread";
  }
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return "expected a grid of at most (2147483647, 65535, 65535) blocks";
  }
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || threads > kMostThreads) {
    return "expected blocks of at most (1024, 1024, 64) threads, and 1024 in all";
  }
  if (shared_bytes > kMostSharedBytes) {
    return "expected at most " + std::to_string(kMostSharedBytes) + " bytes of shared memory, found " +
        std::to_string(shared_bytes);
  }
  return "";
}

uint64_t seed_of(const char* name) {
  const char* text = std::getenv("OES_EMULATION_SEED");
  uint64_t hash = 0xcbf29ce484222325u + (text ? std::strtoull(text, nullptr, 10) : 0);
  for (; *name; ++name) {
    hash = (hash ^ static_cast<unsigned char>(*name)) * 0x100000001b3u;
  }
  return hash;
}

} // namespace

std::string described(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

void fail(const std::string& what) {
  races::listening = false;
  launch.failure = what;
  change_stack(*launch.stacks[launch.current], launch.main);
  std::abort(); // it is not resumed
}

void block_barrier() {
  races::listening = false;
  const int self = launch.current;
  launch.waits[self] = true;
  if (++launch.at_barrier == launch.threads) {
    launch.at_barrier = 0;
    races::barrier_passed();
    uint16_t order[kMostThreads];
    for (int thread = 0; thread < launch.threads; ++thread) {
      launch.waits[thread] = false;
      order[thread] = static_cast<uint16_t>(thread);
    }
    launch.random.shuffle(order, launch.threads);
    for (int i = 0; i < launch.threads; ++i) {
      launch.ready.append(order[i]);
    }
  }
  run_next(*launch.stacks[self]);
  races::listening = true;
}

void warp_collective(const Collective& what, uint32_t mask, void* operand) {
  races::listening = false;
  const int self = launch.current, warp_index = self / 32, lane = self % 32;
  Warp& warp = launch.warps[warp_index];
  if (!(mask >> lane & 1)) {
    fail(
        std::string(what.name) + ": the lanes " + hexadecimal(mask) + " lack the caller's, thread " +
        described(threadIdx));
  }
  warp.operands[lane] = operand;
  warp.at[lane] = what.name;
  warp.exchange[lane] = what.exchange;
  warp.masks[lane] = mask;
  warp.waiting |= 1u << lane;
  const uint32_t lanes = mask & warp.living;
  if ((warp.waiting & lanes) == lanes) {
    finish_collective(warp_index, lanes, lane);
  } else {
    run_next(*launch.stacks[self]);
  }
  races::listening = true;
}

void run_blocks(
    const char* name, dim3 grid, dim3 block, size_t shared_bytes, void (*call)(const void*), const void* body) {
  const std::string kernel = std::string("kernel ") + name;
  if (launch.running && on_stack(__builtin_frame_address(0))) {
    throw std::runtime_error(kernel + ": launched by another kernel");
  }
  if (const std::string reason = refusal(grid, block, shared_bytes); !reason.empty()) {
    throw std::runtime_error(
        kernel + ": " + reason + "; grid " + described({grid.x, grid.y, grid.z}) + ", block " +
        described({block.x, block.y, block.z}));
  }
  const std::lock_guard lock(one_at_a_time);
  launch.name = name;
  launch.call = call;
  launch.body = body;
  launch.random = Random(seed_of(name));
  launch.threads = static_cast<int>(block.x * block.y * block.z);
  for (int thread = 0; thread < launch.threads; ++thread) {
    const auto t = static_cast<unsigned>(thread);
    launch.indices[thread] = {t % block.x, t / block.x % block.y, t / block.x / block.y};
  }
  blockDim = block;
  gridDim = grid;
  resize_shared_memory(shared_bytes);
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  std::vector<uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), uint64_t{0});
  launch.random.shuffle(order.data(), static_cast<uint32_t>(blocks));
  launch.failure.clear();
  launch.running = true;
  races::launch_begins(launch.indices);
  for (uint64_t i = 0; i < blocks && launch.failure.empty(); ++i) {
    const uint64_t index = order[i];
    blockIdx = {
        static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
        static_cast<unsigned>(index / grid.x / grid.y)};
    run_block();
  }
  launch.running = false;
  const std::string found = races::launch_ends();
  if (!launch.failure.empty()) {
    throw std::runtime_error(
        kernel + ", block " + described(blockIdx) + ": " + launch.failure + (found.empty() ? "" : "\n" + found));
  }
  if (!found.empty()) {
    throw std::runtime_error(kernel + ": " + found);
  }
}

} // namespace oes::emulation

void __syncwarp(unsigned mask) {
  ::oes::emulation::warp_collective({"__syncwarp", nullptr}, mask, nullptr);
}

unsigned __ballot_sync(unsigned mask, int predicate) {
  const ::oes::emulation::Collective ballot{
      "__ballot_sync", [](void* const(&operands)[32], uint32_t lanes) {
        unsigned votes = 0;
        for (int lane = 0; lane < 32; ++lane) {
          votes |= (lanes >> lane & 1 && *static_cast<unsigned*>(operands[lane]) ? 1u : 0u) << lane;
        }
        for (int lane = 0; lane < 32; ++lane) {
          if (lanes >> lane & 1) {
            *static_cast<unsigned*>(operands[lane]) = votes;
          }
        }
      }};
  unsigned vote = predicate != 0;
  ::oes::emulation::warp_collective(ballot, mask, &vote);
  return vote;
}
