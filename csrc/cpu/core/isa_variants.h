// The loops in the file OES_ISA_FILE, compiled once for each instruction set: namespaces isa_default, isa_avx2 and
// isa_avx512. To be included inside a namespace; OES_DISPATCH of simd.h calls those of this processor. There is no
// include guard, on purpose.
//
// Functions that are called from outside of the file are marked OES_TARGET, those that they call OES_ISA_INLINE. Loops
// that the compiler vectorises are built with neither fused multiply-add nor reassociation (see _extension.py), so that
// every instruction set gives the same bits.

namespace isa_default {
#define OES_ISA 0
#define OES_TARGET
#define OES_ISA_INLINE OES_INLINE
constexpr Capability kCapability = Capability::kDefault;
#include OES_ISA_FILE
#undef OES_ISA
#undef OES_TARGET
#undef OES_ISA_INLINE
} // namespace isa_default

#if OES_HAS_X86
namespace isa_avx2 {
#define OES_ISA 1
#define OES_TARGET OES_TARGET_AVX2
#define OES_ISA_INLINE OES_TARGET_AVX2 OES_INLINE
constexpr Capability kCapability = Capability::kAvx2;
#include OES_ISA_FILE
#undef OES_ISA
#undef OES_TARGET
#undef OES_ISA_INLINE
} // namespace isa_avx2

namespace isa_avx512 {
#define OES_ISA 2
#define OES_TARGET OES_TARGET_AVX512
#define OES_ISA_INLINE OES_TARGET_AVX512 OES_INLINE
constexpr Capability kCapability = Capability::kAvx512;
#include OES_ISA_FILE
#undef OES_ISA
#undef OES_TARGET
#undef OES_ISA_INLINE
} // namespace isa_avx512
#endif

#undef OES_ISA_FILE
