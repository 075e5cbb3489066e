// What the lanes of a warp do together.
#include "cases.h"
#include "cuda/core/mma.h"

namespace oes::self_test {
namespace {

using namespace oes::cuda;

template <typename T>
struct Shuffles {
  T* y; // [kinds, threads]
};

constexpr int kKinds = 8;

template <typename T>
__global__ void shuffles_kernel(const Shuffles<T> a) {
  const int t = static_cast<int>(threadIdx.x), lane = t % 32;
  const T x = static_cast<T>(t * t + 1);
  const T results[kKinds] = {
      __shfl_sync(0xffffffffu, x, 5),      __shfl_sync(0xffffffffu, x, lane * 7), // wraps round
      __shfl_sync(0xffffffffu, x, 2, 8),   __shfl_xor_sync(0xffffffffu, x, 9),
      __shfl_down_sync(0xffffffffu, x, 3), __shfl_down_sync(0xffffffffu, x, 3, 16),
      __shfl_up_sync(0xffffffffu, x, 4),   static_cast<T>(__popc(__ballot_sync(0xffffffffu, t % 3 == 0))),
  };
  for (int kind = 0; kind < kKinds; ++kind) {
    a.y[kind * blockDim.x + threadIdx.x] = results[kind];
  }
}

template <typename T>
void check_shuffles() {
  constexpr int kThreads = 96;
  const Buffer<T> y(kKinds * kThreads);
  launch(shuffles_kernel<T>, "shuffles_kernel", Launch{dim3(1), dim3(kThreads), 0, nullptr}, Shuffles<T>{y.get()});
  const auto values = y.values();
  for (int t = 0; t < kThreads; ++t) {
    const int lane = t % 32, warp = t - lane;
    int votes = 0;
    for (int i = 0; i < 32; ++i) {
      votes += (warp + i) % 3 == 0;
    }
    const auto x = [&](int source) { return static_cast<T>((warp + source) * (warp + source) + 1); };
    const T expected[kKinds] = {
        x(5),
        x(lane * 7 % 32),
        x(lane / 8 * 8 + 2),
        x(lane ^ 9),
        x(lane + 3 < 32 ? lane + 3 : lane),
        x(lane % 16 + 3 < 16 ? lane + 3 : lane),
        x(lane >= 4 ? lane - 4 : lane),
        static_cast<T>(votes),
    };
    for (int kind = 0; kind < kKinds; ++kind) {
      expect(values[kind * kThreads + t] == expected[kind], "shuffle " + std::to_string(kind));
    }
  }
}

OES_CASE(shuffles) {
  check_shuffles<int>();
  check_shuffles<unsigned>();
  check_shuffles<float>();
  check_shuffles<double>();
}

struct Masked {
  int* y;
  unsigned mask_of_even, mask_of_odd;
};

// Even lanes and odd ones, each for themselves.
__global__ void masked_kernel(const Masked a) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane % 2 == 0) {
    a.y[lane] = __shfl_down_sync(a.mask_of_even, lane, 2);
  } else {
    a.y[lane] = __shfl_xor_sync(a.mask_of_odd, lane, 2);
  }
}

void run_masked(unsigned mask_of_even, unsigned mask_of_odd) {
  const Buffer<int> y(32);
  launch(
      masked_kernel, "masked_kernel", Launch{dim3(1), dim3(32), 0, nullptr},
      Masked{y.get(), mask_of_even, mask_of_odd});
  for (int lane = 0; lane < 32; ++lane) {
    const int even = lane < 30 ? lane + 2 : lane;
    expect(y.values()[lane] == (lane % 2 == 0 ? even : lane ^ 2), "lanes of the mask alone");
  }
}

OES_CASE(masks) {
  run_masked(0x55555555u, 0xaaaaaaaau);
}
OES_CASE(mask_without_caller) {
  run_masked(0x55555555u, 0x55555555u);
}
OES_CASE(lanes_apart) {
  run_masked(0xffffffffu, 0xffffffffu);
}

__global__ void partial_kernel(const Masked a) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane >= 7) {
    return; // they need not come
  }
  const int sum = __shfl_xor_sync(0xffffffffu, lane, 1);
  a.y[lane] = sum;
}

OES_CASE(living_lanes) {
  const Buffer<int> y(7);
  launch(partial_kernel, "partial_kernel", Launch{dim3(1), dim3(20), 0, nullptr}, Masked{y.get(), 0, 0});
  for (int lane = 0; lane < 6; ++lane) {
    expect(y.values()[lane] == (lane ^ 1), "what living lanes give");
  }
  expect(y.values()[6] == -1, "all bits set from a lane that is gone");
}

// Lane 0 leaves; the others would wait for it, or do not agree what for.
__global__ void leaving_kernel(const Masked a) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane == 1) {
    a.y[1] = __shfl_down_sync(0xffffffffu, lane, 1);
  } else if (lane == 2) {
    a.y[2] = __shfl_xor_sync(0xffffffffu, lane, 1);
  }
}

OES_CASE(lanes_apart_once_one_left) {
  const Buffer<int> y(3);
  launch(leaving_kernel, "leaving_kernel", Launch{dim3(1), dim3(3), 0, nullptr}, Masked{y.get(), 0, 0});
}

struct Product {
  const float *a, *b; // [16, 8], [8, 8]
  float* d; // [16, 8]
};

__global__ void product_kernel(const Product p) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const auto a_at = [&](int row, int column) { return to_tf32(p.a[row * 8 + column]); };
  const auto b_at = [&](int row, int column) { return to_tf32(p.b[row * 8 + column]); };
  const uint32_t a[4] = {a_at(g, t), a_at(g + 8, t), a_at(g, t + 4), a_at(g + 8, t + 4)};
  const uint32_t b[2] = {b_at(t, g), b_at(t + 4, g)};
  float d[4];
  for (int i = 0; i < 4; ++i) {
    d[i] = p.d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  }
  mma_tf32_16x8x8(d, a, b);
  for (int i = 0; i < 4; ++i) {
    p.d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
  }
}

OES_CASE(products) {
  std::vector<float> a(16 * 8), b(8 * 8), d(16 * 8);
  for (int i = 0; i < 128; ++i) {
    a[i] = static_cast<float>(i * 37 % 101 - 50);
    d[i] = static_cast<float>(i * 11 % 31) / 4;
  }
  for (int i = 0; i < 64; ++i) {
    b[i] = static_cast<float>(i * 53 % 89 - 44) / 8;
  }
  const Buffer<float> a_buffer(a), b_buffer(b), d_buffer(d);
  launch(
      product_kernel, "product_kernel", Launch{dim3(1), dim3(32), 0, nullptr},
      Product{a_buffer.get(), b_buffer.get(), d_buffer.get()});
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float sum = d[row * 8 + column]; // all exact
      for (int k = 0; k < 8; ++k) {
        sum += a[row * 8 + k] * b[k * 8 + column];
      }
      expect(d_buffer.values()[row * 8 + column] == sum, "the product of two matrices");
    }
  }
}

OES_CASE(tf32) {
  for (const uint32_t bits :
       {0x3f800000u, 0x3f800fffu, 0x3f801000u, 0x3f801001u, 0x3f802000u, 0x3f803000u, 0xbf801000u, 0x3fffffffu,
        0x00000fffu, 0x00001000u, 0x7f7fffffu, 0x7f800000u, 0xff800000u, 0x7fc00000u}) {
    std::printf("%08x %08x\n", bits, to_tf32(__uint_as_float(bits)));
  }
}

} // namespace
} // namespace oes::self_test
