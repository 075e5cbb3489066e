// What code for a CPU and code for a GPU mark their small functions with.
#pragma once

#include <cstring>

#ifdef __CUDACC__
#define OES_INLINE __device__ __forceinline__
#else
#define OES_INLINE inline __attribute__((always_inline))
#endif

namespace oes {

template <typename To, typename From>
OES_INLINE To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

} // namespace oes
