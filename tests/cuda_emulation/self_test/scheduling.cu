// Blocks, threads, barriers.
#include "cases.h"

namespace oes::self_test {
namespace {

using namespace oes::cuda;

struct Order {
  unsigned* counters; // of both phases, and of blocks
  unsigned* turns; // [2, threads]: when each thread had its turn
  unsigned* block_turns;
};

__global__ void order_kernel(const Order a) {
  for (int phase = 0; phase < 2; ++phase) {
    const unsigned turn = atomicAdd(a.counters + phase, 1);
    if (blockIdx.x == 0) {
      a.turns[phase * blockDim.x + threadIdx.x] = turn;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    a.block_turns[blockIdx.x] = atomicAdd(a.counters + 2, 1);
  }
}

void print(const std::vector<unsigned>& values) {
  for (const unsigned value : values) {
    std::printf("%u ", value);
  }
  std::printf("\n");
}

OES_CASE(order) {
  const Buffer<unsigned> counters(std::vector<unsigned>(3, 0)), turns(2 * 40), blocks(1);
  const Buffer<unsigned> many_counters(std::vector<unsigned>(3, 0)), many_turns(2 * 1), many_blocks(50);
  launch(
      order_kernel, "order_kernel", Launch{dim3(1), dim3(40), 0, nullptr},
      Order{counters.get(), turns.get(), blocks.get()});
  launch(
      order_kernel, "order_kernel", Launch{dim3(50), dim3(1), 0, nullptr},
      Order{many_counters.get(), many_turns.get(), many_blocks.get()});
  print(turns.values());
  print(many_blocks.values());
}

struct Sum {
  const float* x;
  float* y;
  int barriers; // of the reduction's steps, how many are followed by one
  bool early_exit;
};

// y[block]: the sum of the block's x, in a tree.
__global__ void __launch_bounds__(256) sum_kernel(const Sum a) {
  OES_SHARED(raw);
  auto* partial = reinterpret_cast<float*>(raw);
  const int threads = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x);
  partial[t] = a.x[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  if (a.early_exit && t >= threads / 2) {
    return;
  }
  for (int half = threads / 2, step = 0; half; half /= 2, ++step) {
    if (t < half) {
      partial[t] += partial[t + half];
    }
    if (step < a.barriers) {
      __syncthreads();
    }
  }
  if (t == 0) {
    a.y[blockIdx.x] = partial[0];
  }
}

void run_sum(int barriers, bool early_exit, int threads = 256) {
  constexpr int kBlocks = 5;
  std::vector<float> x(kBlocks * threads);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(i % 97);
  }
  const Buffer<float> from(x), to(kBlocks);
  launch(
      sum_kernel, "sum_kernel", Launch{dim3(kBlocks), dim3(threads), threads * sizeof(float), nullptr},
      Sum{from.get(), to.get(), barriers, early_exit});
  for (int block = 0; block < kBlocks; ++block) {
    float sum = 0;
    for (int i = 0; i < threads; ++i) {
      sum += x[block * threads + i]; // exact in any order
    }
    expect(to.values()[block] == sum, "the sum of a block");
  }
}

OES_CASE(barriers) {
  run_sum(8, false);
}
OES_CASE(most_threads) {
  run_sum(10, false, 1024);
}
OES_CASE(missing_barrier) {
  run_sum(2, false);
}
OES_CASE(exited_threads) {
  run_sum(8, true);
}

// A failed launch leaves nothing behind.
OES_CASE(after_a_failure) {
  for (int i = 0; i < 3; ++i) {
    try {
      run_sum(8, true);
      expect(false, "an error");
    } catch (const std::runtime_error&) {
    }
    run_sum(8, false);
  }
}

struct Plain {
  int* y;
};

__global__ void indices_kernel(const Plain a) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned i = block * blockDim.x * blockDim.y * blockDim.z + thread;
  a.y[i] = static_cast<int>(i);
}

OES_CASE(indices) {
  const Buffer<int> y(2 * 3 * 4 * 5 * 6 * 7);
  launch(indices_kernel, "indices_kernel", Launch{dim3(2, 3, 4), dim3(5, 6, 7), 0, nullptr}, Plain{y.get()});
  const auto values = y.values();
  for (size_t i = 0; i < values.size(); ++i) {
    expect(values[i] == static_cast<int>(i), "every thread of every block, once");
  }
}

OES_CASE(shapes) {
  const auto refused = [](dim3 grid, dim3 block, size_t shared_bytes) {
    try {
      launch(indices_kernel, "indices_kernel", Launch{grid, block, shared_bytes, nullptr}, Plain{nullptr});
    } catch (const std::runtime_error& error) {
      std::printf("%s\n", error.what());
      return;
    }
    expect(false, "a refusal");
  };
  refused(dim3(0), dim3(1), 0);
  refused(dim3(1), dim3(0), 0);
  refused(dim3(1, 65536), dim3(1), 0);
  refused(dim3(1, 1, 65536), dim3(1), 0);
  refused(dim3(1), dim3(1025), 0);
  refused(dim3(1), dim3(32, 33), 0);
  refused(dim3(1), dim3(1, 1, 65), 0);
  refused(dim3(1), dim3(1), 227 * 1024 + 1);
}

__global__ void divergent_kernel(const Plain) {
  if (threadIdx.x == 3) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

OES_CASE(divergent_barriers) {
  launch(divergent_kernel, "divergent_kernel", Launch{dim3(1), dim3(64), 0, nullptr}, Plain{nullptr});
}

__global__ void throwing_kernel(const Plain) {
  __syncthreads();
  if (threadIdx.x == 3) {
    throw std::invalid_argument("thrown on purpose");
  }
  __syncthreads();
}

OES_CASE(throwing) {
  launch(throwing_kernel, "throwing_kernel", Launch{dim3(1), dim3(64), 0, nullptr}, Plain{nullptr});
}

__global__ void nested_kernel(const Plain a) {
  launch(indices_kernel, "indices_kernel", Launch{dim3(1), dim3(1), 0, nullptr}, a);
}

OES_CASE(nested_launch) {
  launch(nested_kernel, "nested_kernel", Launch{dim3(1), dim3(1), 0, nullptr}, Plain{nullptr});
}

} // namespace
} // namespace oes::self_test
