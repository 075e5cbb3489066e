// The words of Philox4x32-10 (see common/philox_constants.h), tile by tile.
#pragma once

#include "common/philox_constants.h"
#include "cpu/core/simd.h"

#if OES_HAS_X86
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized" // gcc 12 finds them in this header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

namespace oes {

// Elements that are taken through all steps at a time: so few that memory and arithmetic are busy together, the least
// that four chains of the widest vectors make.
constexpr int kPhiloxTile = 128;
constexpr int kPhiloxChains =
    4; // vectors of counters taken through the rounds together: one alone waits for its products
// Tiles that one thread takes at least: below, waking another costs more than it saves.
constexpr int64_t kPhiloxGrain = 128;

constexpr int64_t philox_tiles(int64_t numel) {
  return ceil_div(numel, kPhiloxTile);
}

// philox_tile<capability>: the words of elements tile * kPhiloxTile .. (tile + 1) * kPhiloxTile - 1, 64-byte aligned. A
// tile starts at a multiple of its size, so the low counter word never carries into the high one inside it.
template <Capability kCapability>
inline void philox_tile(const PhiloxKey& key, int64_t tile, uint32_t* __restrict words) {
  const uint64_t first = static_cast<uint64_t>(tile) * (kPhiloxTile / 4);
  for (uint32_t block = 0; block < kPhiloxTile / 4; ++block) {
    uint32_t c0 = static_cast<uint32_t>(first) + block, c1 = static_cast<uint32_t>(first >> 32);
    uint32_t c2 = key.step, c3 = key.stream, k0 = key.low, k1 = key.high;
#pragma GCC unroll 10
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const uint64_t p0 = static_cast<uint64_t>(c0) * kPhiloxMultiplier0;
      const uint64_t p1 = static_cast<uint64_t>(c2) * kPhiloxMultiplier1;
      c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(p1);
      c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(p0);
      k0 += kPhiloxWeyl0;
      k1 += kPhiloxWeyl1;
    }
    words[4 * block] = c0;
    words[4 * block + 1] = c1;
    words[4 * block + 2] = c2;
    words[4 * block + 3] = c3;
  }
}

#if OES_HAS_X86

// The same by hand, twice as fast: x86 multiplies 32 x 32 to 64 bits in 64-bit lanes, which compilers do not
// find. Each counter word sits in the low half of such a lane; what is in the high half is never read. The order
// of the blocks in the lanes (the last arguments) makes the two final unpackings yield them in order.
#define OES_PHILOX_TILE(CAPABILITY, TARGET, VECTOR, PREFIX, BITS, BROADCAST, XOR3, PAIR, ...)                    \
  template <>                                                                                                    \
  TARGET inline void philox_tile<CAPABILITY>(const PhiloxKey& key, int64_t tile, uint32_t* __restrict words) {   \
    constexpr int kLanes = BITS / 64;                                                                            \
    const uint64_t first = static_cast<uint64_t>(tile) * (kPhiloxTile / 4);                                      \
    const VECTOR multiplier0 = BROADCAST(kPhiloxMultiplier0), multiplier1 = BROADCAST(kPhiloxMultiplier1);       \
    const VECTOR high_word = BROADCAST(first >> 32);                                                             \
    const VECTOR step = BROADCAST(key.step), stream = BROADCAST(key.stream);                                     \
    alignas(64) const uint64_t lanes[] = {__VA_ARGS__};                                                          \
    VECTOR counter = PREFIX##_add_epi64(                                                                         \
        BROADCAST(first & 0xFFFFFFFFu), PREFIX##_load_si##BITS(reinterpret_cast<const VECTOR*>(lanes)));         \
    const VECTOR advance = BROADCAST(kLanes);                                                                    \
    for (int block = 0; block < kPhiloxTile / 4; block += kPhiloxChains * kLanes) {                              \
      VECTOR c0[kPhiloxChains], c1[kPhiloxChains], c2[kPhiloxChains], c3[kPhiloxChains];                         \
      for (int i = 0; i < kPhiloxChains; ++i) {                                                                  \
        c0[i] = counter, c1[i] = high_word, c2[i] = step, c3[i] = stream;                                        \
        counter = PREFIX##_add_epi64(counter, advance);                                                          \
      }                                                                                                          \
      uint32_t k0 = key.low, k1 = key.high;                                                                      \
      _Pragma("GCC unroll 10") for (int round = 0; round < kPhiloxRounds; ++round) {                             \
        const VECTOR key0 = BROADCAST(k0), key1 = BROADCAST(k1);                                                 \
        _Pragma("GCC unroll 4") for (int i = 0; i < kPhiloxChains; ++i) {                                        \
          const VECTOR p0 = PREFIX##_mul_epu32(c0[i], multiplier0), p1 = PREFIX##_mul_epu32(c2[i], multiplier1); \
          c0[i] = XOR3(PREFIX##_srli_epi64(p1, 32), c1[i], key0);                                                \
          c1[i] = p1;                                                                                            \
          c2[i] = XOR3(PREFIX##_srli_epi64(p0, 32), c3[i], key1);                                                \
          c3[i] = p0;                                                                                            \
        }                                                                                                        \
        k0 += kPhiloxWeyl0;                                                                                      \
        k1 += kPhiloxWeyl1;                                                                                      \
      }                                                                                                          \
      VECTOR* out = reinterpret_cast<VECTOR*>(words + 4 * block);                                                \
      for (int i = 0; i < kPhiloxChains; ++i) {                                                                  \
        const VECTOR c01 = PAIR(c0[i], c1[i]), c23 = PAIR(c2[i], c3[i]);                                         \
        PREFIX##_store_si##BITS(out + 2 * i, PREFIX##_unpacklo_epi64(c01, c23));                                 \
        PREFIX##_store_si##BITS(out + 2 * i + 1, PREFIX##_unpackhi_epi64(c01, c23));                             \
      }                                                                                                          \
    }                                                                                                            \
  }

#define OES_XOR3_128(A, B, C) _mm_xor_si128(_mm_xor_si128(A, B), C)
#define OES_XOR3_256(A, B, C) _mm256_xor_si256(_mm256_xor_si256(A, B), C)
#define OES_XOR3_512(A, B, C) _mm512_ternarylogic_epi64(A, B, C, 0x96)
// The low halves of A below those of B.
#define OES_PAIR_128(A, B) _mm_unpacklo_epi32(_mm_shuffle_epi32(A, 0x88), _mm_shuffle_epi32(B, 0x88))
#define OES_PAIR_256(A, B) _mm256_blend_epi32(A, _mm256_slli_epi64(B, 32), 0xAA)
#define OES_PAIR_512(A, B) _mm512_mask_shuffle_epi32(A, 0xAAAA, B, _MM_PERM_CCAA)

OES_PHILOX_TILE(Capability::kDefault, , __m128i, _mm, 128, _mm_set1_epi64x, OES_XOR3_128, OES_PAIR_128, 0, 1)
OES_PHILOX_TILE(
    Capability::kAvx2, OES_TARGET_AVX2, __m256i, _mm256, 256, _mm256_set1_epi64x, OES_XOR3_256, OES_PAIR_256, 0, 2, 1,
    3)
OES_PHILOX_TILE(
    Capability::kAvx512, OES_TARGET_AVX512, __m512i, _mm512, 512, _mm512_set1_epi64, OES_XOR3_512, OES_PAIR_512, 0, 4,
    1, 5, 2, 6, 3, 7)

#endif

} // namespace oes
