#include "sparse_up_conv2d.h"

#include <algorithm>

#include "scratch.h"
#include "sparse_conv2d.h"
#include "tensors.h"

#if OES_HAS_X86
#include <immintrin.h>
#endif

namespace oes::mixing {
namespace {

namespace level_default {
#define OES_LEVEL 0
#define OES_TARGET
#define OES_HERE OES_INLINE
#include "sparse_up_conv2d_kernels.h"
#undef OES_LEVEL
#undef OES_TARGET
#undef OES_HERE
} // namespace level_default

#if OES_HAS_X86
namespace level_avx2 {
#define OES_LEVEL 1
#define OES_TARGET OES_TARGET_AVX2
#define OES_HERE OES_TARGET_AVX2 OES_INLINE
#include "sparse_up_conv2d_kernels.h"
#undef OES_LEVEL
#undef OES_TARGET
#undef OES_HERE
} // namespace level_avx2

namespace level_avx512 {
#define OES_LEVEL 2
#define OES_TARGET OES_TARGET_AVX512
#define OES_HERE OES_TARGET_AVX512 OES_INLINE
#include "sparse_up_conv2d_kernels.h"
#undef OES_LEVEL
#undef OES_TARGET
#undef OES_HERE
} // namespace level_avx512
#endif

constexpr int64_t kCache = 320 << 10; // bytes of a strip with all that is made of it
constexpr int64_t kNear = 20 << 10; // bytes in the first-level cache
constexpr int64_t kUnits = 8; // of work at least, where it can be cut
constexpr int64_t kBlock = 8; // outputs whose gradients lie in the cache together
constexpr int64_t kSlots = 16;
constexpr int64_t kVectors = 12; // of a tile: fewer pixels than that leave registers empty

// Rows of a strip of which each row takes `bytes`, about equal strips.
int64_t rows_of_strip(int64_t rows, int64_t columns, int64_t bytes, int64_t element) {
  const int64_t least = std::min(rows, ceil_div(kVectors * vector_bytes(capability()) / element, columns));
  const int64_t most = std::min(rows, std::max(least, kCache / bytes));
  return ceil_div(rows, ceil_div(rows, most));
}

// Elements from one plane of a strip to the next, for planes of that many: so that the same tile of many planes falls
// into different sets of the first-level cache, which a multiple of its ways' 4096 bytes would not.
int64_t plane_of(int64_t count, int64_t lanes, int64_t element) {
  const int64_t way = 4096 / element, least = ceil_div(count, lanes) * lanes;
  return least + ((kVectors * lanes - least) % way + way) % way;
}

} // namespace

template <typename T>
void cut(Mix<T>& a) {
  const int64_t lanes = vector_bytes(capability()) / static_cast<int64_t>(sizeof(T)), halo = a.kernel == 9 ? 1 : 0;
  a.strip_rows = rows_of_strip(a.rows, a.columns, (a.inputs + a.kernel) * a.columns * sizeof(T), sizeof(T));
  a.strips = ceil_div(a.rows, a.strip_rows);
  a.plane = plane_of((a.strip_rows + 2 * halo) * (a.columns + 2 * halo) + lanes, lanes, sizeof(T));
  a.groups = std::max<int64_t>(1, std::min(a.outputs, ceil_div(kUnits, a.strips)));
  a.piece = std::max<int64_t>(1, kNear / (vector_bytes(capability()) * a.inputs * kVectors)) * kVectors;
}

template <typename T>
void cut(MixBack<T>& a) {
  a.block = std::max<int64_t>(1, std::min(a.outputs, a.kernel == 9 ? kBlock : kBlock * 9));
  a.blocks = ceil_div(a.outputs, a.block);
  const int64_t bytes = (2 * a.inputs + a.block * a.kernel + 6) * a.columns * sizeof(T);
  a.strip_rows = rows_of_strip(a.rows, a.columns, bytes, sizeof(T));
  a.strips = ceil_div(a.rows, a.strip_rows);
  a.lanes = vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
  a.plane = plane_of(a.strip_rows * a.columns, a.lanes, sizeof(T));
  a.slots = std::min(a.strips, kSlots);
  a.piece = std::max<int64_t>(kVectors, kNear / (vector_bytes(capability()) * a.inputs));
  a.lanes = vector_bytes(capability()) / static_cast<int64_t>(sizeof(T));
  a.parts = a.strips >= kUnits ? 1 : std::min<int64_t>(ceil_div(kUnits, a.strips), 4);
}

template <typename T>
void mix(const Mix<T>& a) {
  torch::stable::parallel_for(0, a.strips * a.groups, 1, [&](int64_t begin, int64_t end) {
#if OES_HAS_X86
    if (capability() == Capability::kAvx512) {
      return level_avx512::mix(a, begin, end);
    }
    if (capability() == Capability::kAvx2) {
      return level_avx2::mix(a, begin, end);
    }
#endif
    level_default::mix(a, begin, end);
  });
}

template <typename T>
void mix_back(const MixBack<T>& a) {
  torch::stable::parallel_for(0, a.slots * a.parts, 1, [&](int64_t begin, int64_t end) {
#if OES_HAS_X86
    if (capability() == Capability::kAvx512) {
      return level_avx512::mix_back(a, begin, end);
    }
    if (capability() == Capability::kAvx2) {
      return level_avx2::mix_back(a, begin, end);
    }
#endif
    level_default::mix_back(a, begin, end);
  });
}

template void mix(const Mix<float>&);
template void mix(const Mix<double>&);
template void mix_back(const MixBack<float>&);
template void mix_back(const MixBack<double>&);
template void cut(Mix<float>&);
template void cut(Mix<double>&);
template void cut(MixBack<float>&);
template void cut(MixBack<double>&);

} // namespace oes::mixing
