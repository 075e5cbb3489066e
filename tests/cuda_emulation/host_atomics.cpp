// What instrumented code calls for C++ atomics, which the host's code has: those of function-local statics, for
// example.
#include "fibers.h"
#include "races.h"

namespace {

void refuse_in_kernels() {
  using namespace oes::emulation;
  if (races::listening && on_stack(__builtin_frame_address(0))) {
    fail("kernels have no atomics but atomicAdd() of unsigned numbers; thread " + described(threadIdx));
  }
}

} // namespace

#define OES_HOOK(type) extern "C" __attribute__((visibility("hidden"), used)) type

// In the strictest order, whichever is asked for.
#define OES_HOOKS_OF_ATOMIC(bits)                                                                      \
  OES_HOOK(uint##bits##_t) __tsan_atomic##bits##_load(const volatile uint##bits##_t* a, int) {         \
    refuse_in_kernels();                                                                               \
    return __atomic_load_n(a, __ATOMIC_SEQ_CST);                                                       \
  }                                                                                                    \
  OES_HOOK(void) __tsan_atomic##bits##_store(volatile uint##bits##_t* a, uint##bits##_t value, int) {  \
    refuse_in_kernels();                                                                               \
    __atomic_store_n(a, value, __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                    \
  OES_HOOK(uint##bits##_t)                                                                             \
  __tsan_atomic##bits##_exchange(volatile uint##bits##_t* a, uint##bits##_t value, int) {              \
    refuse_in_kernels();                                                                               \
    return __atomic_exchange_n(a, value, __ATOMIC_SEQ_CST);                                            \
  }                                                                                                    \
  OES_HOOK(uint##bits##_t)                                                                             \
  __tsan_atomic##bits##_fetch_add(volatile uint##bits##_t* a, uint##bits##_t value, int) {             \
    refuse_in_kernels();                                                                               \
    return __atomic_fetch_add(a, value, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                    \
  OES_HOOK(uint##bits##_t)                                                                             \
  __tsan_atomic##bits##_fetch_sub(volatile uint##bits##_t* a, uint##bits##_t value, int) {             \
    refuse_in_kernels();                                                                               \
    return __atomic_fetch_sub(a, value, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                    \
  OES_HOOK(int)                                                                                        \
  __tsan_atomic##bits##_compare_exchange_strong(                                                       \
      volatile uint##bits##_t* a, uint##bits##_t* expected, uint##bits##_t value, int, int) {          \
    refuse_in_kernels();                                                                               \
    return __atomic_compare_exchange_n(a, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }                                                                                                    \
  OES_HOOK(int)                                                                                        \
  __tsan_atomic##bits##_compare_exchange_weak(                                                         \
      volatile uint##bits##_t* a, uint##bits##_t* expected, uint##bits##_t value, int, int) {          \
    refuse_in_kernels();                                                                               \
    return __atomic_compare_exchange_n(a, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }

OES_HOOKS_OF_ATOMIC(8)
OES_HOOKS_OF_ATOMIC(16)
OES_HOOKS_OF_ATOMIC(32)
OES_HOOKS_OF_ATOMIC(64)
OES_HOOK(void) __tsan_atomic_thread_fence(int) {
  refuse_in_kernels();
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
