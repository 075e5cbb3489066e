// The kernels in the file OES_KERNELS, compiled once for each instruction set: namespaces level_default, level_avx2 and
// level_avx512. To be included inside a namespace; OES_AT_LEVEL of simd.h calls those of this processor. There is no
// include guard, on purpose.

namespace level_default {
#define OES_LEVEL 0
#define OES_TARGET
#define OES_HERE OES_INLINE
#include OES_KERNELS
#undef OES_LEVEL
#undef OES_TARGET
#undef OES_HERE
} // namespace level_default

#if OES_HAS_X86
namespace level_avx2 {
#define OES_LEVEL 1
#define OES_TARGET OES_TARGET_AVX2
#define OES_HERE OES_TARGET_AVX2 OES_INLINE
#include OES_KERNELS
#undef OES_LEVEL
#undef OES_TARGET
#undef OES_HERE
} // namespace level_avx2

namespace level_avx512 {
#define OES_LEVEL 2
#define OES_TARGET OES_TARGET_AVX512
#define OES_HERE OES_TARGET_AVX512 OES_INLINE
#include OES_KERNELS
#undef OES_LEVEL
#undef OES_TARGET
#undef OES_HERE
} // namespace level_avx512
#endif

#undef OES_KERNELS
