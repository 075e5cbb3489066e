// What tensor cores do, for csrc/cuda/core/mma.h.
#include "cuda_emulation.h"

namespace oes::emulation {
namespace {

// Tensor cores read 19 bits of a register.
float as_tf32(uint32_t bits) {
  return std::bit_cast<float>(bits & 0xffffe000u);
}

struct Fragments {
  float* d;
  const uint32_t *a, *b;
};

void multiply(void* const (&operands)[32], uint32_t lanes) {
  float a[16][8], b[8][8];
  std::memset(a, 0xFF, sizeof(a)); // of lanes that take no part
  std::memset(b, 0xFF, sizeof(b));
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes >> lane & 1) {
      const auto& fragments = *static_cast<const Fragments*>(operands[lane]);
      const int g = lane / 4, t = lane % 4;
      a[g][t] = as_tf32(fragments.a[0]);
      a[g + 8][t] = as_tf32(fragments.a[1]);
      a[g][t + 4] = as_tf32(fragments.a[2]);
      a[g + 8][t + 4] = as_tf32(fragments.a[3]);
      b[t][g] = as_tf32(fragments.b[0]);
      b[t + 4][g] = as_tf32(fragments.b[1]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes >> lane & 1) {
      float* d = static_cast<const Fragments*>(operands[lane])->d;
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 8; ++k) {
          d[i] += a[row][k] * b[k][column];
        }
      }
    }
  }
}

} // namespace

uint32_t to_tf32(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const bool finite = (bits >> 23 & 0xff) != 0xff;
  return (finite ? bits + 0x1000u : bits) & 0xffffe000u; // what ptxas makes of cvt.rna.tf32.f32
}

void mma_tf32_16x8x8(float* d, const uint32_t* a, const uint32_t* b) {
  Fragments fragments{d, a, b};
  warp_collective({"mma_tf32_16x8x8", multiply}, 0xffffffffu, &fragments);
}

} // namespace oes::emulation
