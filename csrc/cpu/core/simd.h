// Shared by all CPU kernels: the instruction set in use, chosen at run time, and what loops for several of them are
// marked with (see isa_variants.h).
#pragma once

#include <cstdint>

#include "common/inline.h"

// On a lambda inside a body: out of line it would be compiled for the baseline.
#define OES_LAMBDA __attribute__((always_inline))

#if defined(__x86_64__)
#include <immintrin.h>

#define OES_HAS_X86 1
#define OES_TARGET_AVX2 __attribute__((target("avx2,fma,bmi,bmi2")))
#if defined(__clang__)
#define OES_WIDEST ""
#else
#define OES_WIDEST ",prefer-vector-width=512" // clang takes the widest vectors unasked
#endif
#if defined(OES_EMULATE_AVX512)
#include "cpu/core/avx512_emulation.h"
#define OES_TARGET_AVX512 OES_TARGET_AVX2
#else
#define OES_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,bmi,bmi2" OES_WIDEST)))
#endif
#else
#define OES_HAS_X86 0
#endif

namespace oes {

enum class Capability { kDefault = 0, kAvx2 = 1, kAvx512 = 2 };

// The capability in use: the best of this processor, or the one OES_FAST_CPU_CAPABILITY asks for.
Capability capability();

const char* name_of(Capability capability);

// Reads the processor and the environment once. Returns the message of the error, or nullptr.
const char* initialise_capability();

// Bytes of a vector.
constexpr int vector_bytes(Capability capability) {
  return capability == Capability::kAvx512 ? 64 : capability == Capability::kAvx2 ? 32 : 16;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

} // namespace oes

// NAME(...) of the namespaces of isa_variants.h, as compiled for the instruction set in use.
#if OES_HAS_X86
#define OES_DISPATCH(NAME, ...)                                                      \
  (oes::capability() == oes::Capability::kAvx512     ? isa_avx512::NAME(__VA_ARGS__) \
       : oes::capability() == oes::Capability::kAvx2 ? isa_avx2::NAME(__VA_ARGS__)   \
                                                     : isa_default::NAME(__VA_ARGS__))
#else
#define OES_DISPATCH(NAME, ...) isa_default::NAME(__VA_ARGS__)
#endif
