// What kernels do with memory: faults planted for the detector, and what it must not take for one.
#include <atomic>

#include "cases.h"

namespace oes::self_test {
namespace {

using namespace oes::cuda;

enum class Neighbours { kBarrier, kWarpBarrier, kNone };

struct Exchange {
  int* y;
  Neighbours order;
  int distance; // between the thread that writes and the one that reads
  bool write_again;
};

// y[t] = t + distance, by way of shared memory.
template <typename T>
__global__ void exchange_kernel(const Exchange a) {
  OES_SHARED(raw);
  auto* s = reinterpret_cast<T*>(raw);
  const int t = static_cast<int>(threadIdx.x), source = (t + a.distance) % static_cast<int>(blockDim.x);
  s[t] = static_cast<T>(t);
  if (a.order == Neighbours::kBarrier) {
    __syncthreads();
  } else if (a.order == Neighbours::kWarpBarrier) {
    __syncwarp();
  }
  a.y[t] = static_cast<int>(s[source]);
  if (a.write_again) {
    s[t] = 0; // others may not have read it yet
  }
}

template <typename T = int>
void run_exchange(Neighbours order, int distance, bool write_again = false) {
  const Buffer<int> y(64);
  launch(
      exchange_kernel<T>, "exchange_kernel", Launch{dim3(1), dim3(64), 64 * sizeof(T), nullptr},
      Exchange{y.get(), order, distance, write_again});
}

OES_CASE(exchange) {
  run_exchange(Neighbours::kBarrier, 1);
}
OES_CASE(exchange_of_bytes) { // neighbours in one word are no race
  run_exchange<unsigned char>(Neighbours::kBarrier, 1);
}
OES_CASE(exchange_of_doubles) {
  run_exchange<double>(Neighbours::kBarrier, 33);
}
OES_CASE(read_too_early) {
  run_exchange(Neighbours::kNone, 1);
}
OES_CASE(byte_read_too_early) {
  run_exchange<unsigned char>(Neighbours::kNone, 1);
}
OES_CASE(write_too_early) {
  run_exchange(Neighbours::kBarrier, 1, true);
}
OES_CASE(read_across_warps) {
  run_exchange(Neighbours::kWarpBarrier, 32);
}

struct Word {
  int* y;
  int index;
  bool shared;
};

__global__ void lanes_kernel(const Word a) {
  OES_SHARED(raw);
  auto* s = reinterpret_cast<int*>(raw);
  const int t = static_cast<int>(threadIdx.x);
  for (int round = 0; round < 3; ++round) {
    s[t] = t + round;
    __syncwarp();
    a.y[t] = s[t ^ 1];
    __syncwarp();
  }
}

OES_CASE(lanes_of_a_warp) {
  const Buffer<int> y(64);
  launch(lanes_kernel, "lanes_kernel", Launch{dim3(1), dim3(64), 256, nullptr}, Word{y.get(), 0, true});
}

// Thread 0 of each block writes one word.
__global__ void write_kernel(const Word a) {
  OES_SHARED(raw);
  if (threadIdx.x == 0) {
    (a.shared ? reinterpret_cast<int*>(raw) : a.y)[a.index] = 1;
  }
}

__global__ void read_kernel(const Word a) {
  OES_SHARED(raw);
  if (threadIdx.x == 3) {
    a.y[0] = (a.shared ? reinterpret_cast<int*>(raw) : a.y)[a.index];
  }
}

void run_on_word(void (*kernel)(Word), const char* name, int index, bool shared, int blocks = 1) {
  const Buffer<int> y(10);
  launch(kernel, name, Launch{dim3(blocks), dim3(4), 40, nullptr}, Word{y.get(), index, shared});
}

OES_CASE(shared_overrun) {
  run_on_word(write_kernel, "write_kernel", 10, true);
}
OES_CASE(shared_underrun) {
  run_on_word(write_kernel, "write_kernel", -1, true);
}
OES_CASE(device_overrun) {
  run_on_word(write_kernel, "write_kernel", 10, false);
}
OES_CASE(device_underrun) {
  run_on_word(write_kernel, "write_kernel", -1, false);
}
OES_CASE(shared_not_initialised) {
  run_on_word(read_kernel, "read_kernel", 4, true);
}
OES_CASE(device_not_initialised) {
  run_on_word(read_kernel, "read_kernel", 4, false);
}
OES_CASE(two_blocks_write) {
  run_on_word(write_kernel, "write_kernel", 4, false, 2);
}
OES_CASE(blocks_have_their_own_shared_memory) {
  run_on_word(write_kernel, "write_kernel", 4, true, 2);
}

OES_CASE(launches_in_a_row) {
  const Buffer<int> y(10);
  for (int i = 0; i < 3; ++i) {
    launch(write_kernel, "write_kernel", Launch{dim3(1), dim3(4), 0, nullptr}, Word{y.get(), i % 2, false});
    launch(read_kernel, "read_kernel", Launch{dim3(1), dim3(4), 0, nullptr}, Word{y.get(), i % 2, false});
  }
}

OES_CASE(released_memory) {
  int* y = Buffer<int>(10).get();
  launch(write_kernel, "write_kernel", Launch{dim3(1), dim3(4), 0, nullptr}, Word{y, 0, false});
}

OES_CASE(copy_overrun) {
  const Buffer<int> y(10);
  const std::vector<int> values(11);
  copy_to_device(y.get(), values.data(), values.size() * sizeof(int));
}

struct Counters {
  unsigned* device;
  bool standard; // an atomic of C++
};

__global__ void counters_kernel(const Counters a) {
  OES_SHARED(raw);
  if (a.standard) {
    std::atomic_ref<unsigned>(*a.device).fetch_add(1);
  } else {
    atomicAdd(reinterpret_cast<unsigned*>(raw), 1);
  }
}

void run_counters(bool standard) {
  const Buffer<unsigned> counter(std::vector<unsigned>(1, 0));
  launch(counters_kernel, "counters_kernel", Launch{dim3(1), dim3(4), 4, nullptr}, Counters{counter.get(), standard});
}

OES_CASE(shared_counter) {
  run_counters(false);
}
OES_CASE(standard_counter) {
  run_counters(true);
}

struct Neighbour {
  int* y;
  bool write;
};

// Block 1 takes part in what block 0 has: it reads it, or writes over what that has read.
__global__ void neighbour_kernel(const Neighbour a) {
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    a.y[0] = a.write ? a.y[1] : 1;
  } else if (blockIdx.x == 1 && threadIdx.x == 0) {
    if (a.write) {
      a.y[1] = 2;
    } else {
      a.y[1] = a.y[0];
    }
  }
}

void run_neighbours(bool write) {
  const Buffer<int> y(std::vector<int>(2, 0));
  launch(neighbour_kernel, "neighbour_kernel", Launch{dim3(2), dim3(4), 0, nullptr}, Neighbour{y.get(), write});
}

OES_CASE(block_reads_of_another) {
  run_neighbours(false);
}
OES_CASE(block_writes_over_another) {
  run_neighbours(true);
}

enum class Ticket { kRight, kNoFence, kFenceTooLate, kNoLastFence, kNoBarrier, kFenceByAll, kResetByAll };

struct LastBlock {
  float* partial; // [blocks, threads]
  float* sum;
  unsigned* counter;
  Ticket how;
};

// sum = the sum of all partials, by the block that is the last to finish.
__global__ void last_block_kernel(const LastBlock a) {
  OES_SHARED(raw);
  auto* last = reinterpret_cast<unsigned*>(raw);
  const unsigned threads = blockDim.x, t = threadIdx.x;
  a.partial[blockIdx.x * threads + t] = static_cast<float>(t + 1);
  if (a.how == Ticket::kFenceByAll) {
    __threadfence();
  }
  __syncthreads();
  if (t == 0) {
    if (a.how != Ticket::kNoFence && a.how != Ticket::kFenceTooLate && a.how != Ticket::kFenceByAll) {
      __threadfence();
    }
    *last = atomicAdd(a.counter, 1) == gridDim.x - 1;
    if (a.how != Ticket::kNoFence && a.how != Ticket::kNoLastFence && a.how != Ticket::kFenceByAll) {
      __threadfence();
    }
    if (a.how == Ticket::kResetByAll) {
      *a.counter = 0;
    }
  }
  if (a.how == Ticket::kNoBarrier) {
    if (t == 1) {
      a.partial[blockIdx.x * threads + t] = a.partial[0];
    }
    return;
  }
  __syncthreads();
  if (a.how == Ticket::kFenceByAll) {
    __threadfence();
  }
  if (*last && t == threads - 1) { // a fixed order: the same bits in every run
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x * threads; ++i) {
      sum += a.partial[i];
      a.partial[i] = 0;
    }
    *a.sum = sum;
    *a.counter = 0;
  }
}

void run_last_block(Ticket how) {
  constexpr int kBlocks = 7, kThreads = 8;
  const Buffer<float> partial(std::vector<float>(kBlocks * kThreads, 0.0f)), sum(1);
  const Buffer<unsigned> counter(std::vector<unsigned>(1, 0));
  for (int run = 0; run < 2; ++run) {
    launch(
        last_block_kernel, "last_block_kernel", Launch{dim3(kBlocks), dim3(kThreads), 4, nullptr},
        LastBlock{partial.get(), sum.get(), counter.get(), how});
    expect(sum.values()[0] == kBlocks * kThreads * (kThreads + 1) / 2, "the sum of all blocks");
  }
}

OES_CASE(ticket) {
  run_last_block(Ticket::kRight);
}
OES_CASE(ticket_with_fences_by_all) {
  run_last_block(Ticket::kFenceByAll);
}
OES_CASE(ticket_without_fence) {
  run_last_block(Ticket::kNoFence);
}
OES_CASE(ticket_before_fence) {
  run_last_block(Ticket::kFenceTooLate);
}
OES_CASE(ticket_without_last_fence) {
  run_last_block(Ticket::kNoLastFence);
}
OES_CASE(ticket_without_barrier) {
  run_last_block(Ticket::kNoBarrier);
}
OES_CASE(counter_reset_by_all) {
  run_last_block(Ticket::kResetByAll);
}

} // namespace
} // namespace oes::self_test
