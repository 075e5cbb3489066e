#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__) || !defined(__linux__)
#define OES_EMULATION_UCONTEXT // elsewhere, at two system calls a change
#endif
#ifdef OES_EMULATION_UCONTEXT
#include <ucontext.h>
#endif

#include <cstdint>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define OES_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define OES_ADDRESS_SANITIZER
#endif
#endif
#ifdef OES_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef OES_EMULATION_UCONTEXT
// Keeps what a function must not change, and takes up what another stack kept: setjmp() and longjmp() without their
// checks. The control words of the floating point units are the same on all stacks.
asm(R"(
  .text
  .p2align 4
  .globl oes_emulation_change_stack
  .hidden oes_emulation_change_stack
  .type oes_emulation_change_stack, @function
oes_emulation_change_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size oes_emulation_change_stack, .-oes_emulation_change_stack
)");
extern "C" void oes_emulation_change_stack(void** from, void* to);
#endif

namespace oes::emulation {
namespace {

#ifdef OES_ADDRESS_SANITIZER
constexpr size_t kStackBytes = 256 * 1024; // its frames are larger
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
constexpr size_t kStacks = 1024 + 1; // threads of a block that wait, and one that runs

char* arena = nullptr;
std::vector<Stack*> unused;
size_t made = 0;
void (*entry)() = nullptr;
Stack* left = nullptr; // the stack that was left last

void map_arena() {
  void* mapped =
      mmap(nullptr, kStacks * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) {
    throw std::bad_alloc();
  }
  arena = static_cast<char*>(mapped);
  stacks_begin = arena;
  stacks_bytes = kStacks * kStackBytes;
}

#ifdef OES_EMULATION_UCONTEXT
ucontext_t* context_of(Stack& stack) {
  if (!stack.place) {
    stack.place = new ucontext_t;
  }
  return static_cast<ucontext_t*>(stack.place);
}
#endif

void entered() {
#ifdef OES_ADDRESS_SANITIZER
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  left->bottom =
      const_cast<char*>(static_cast<const char*>(bottom)); // of the thread's own stack nothing is known before
  left->bytes = bytes;
#endif
}

} // namespace

void stack_entered() {
  entered();
}

void reset_stack(Stack* stack) {
#ifdef OES_ADDRESS_SANITIZER
  __asan_unpoison_memory_region(stack->bottom, stack->bytes); // what was abandoned in frames
  stack->fake = nullptr;
#endif
#ifdef OES_EMULATION_UCONTEXT
  ucontext_t* context = context_of(*stack);
  getcontext(context);
  context->uc_stack.ss_sp = stack->bottom;
  context->uc_stack.ss_size = stack->bytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
#else
  // Tops differ in their low address bits, else they would all compete for the same lines of the cache.
  const size_t index = static_cast<size_t>(stack->bottom - arena) / kStackBytes;
  auto* top = reinterpret_cast<uintptr_t*>(stack->bottom + stack->bytes - 64 - index % 32 * 320);
  *--top = 0; // the address that entry() would return to; entered with the alignment of a called function
  top -= reinterpret_cast<uintptr_t>(top) % 16 == 8 ? 0 : 1;
  *top = 0;
  *--top = reinterpret_cast<uintptr_t>(entry);
  for (int saved = 0; saved < 6; ++saved) {
    *--top = 0;
  }
  stack->place = top;
#endif
}

Stack* take_stack(void (*start)()) {
  entry = start;
  if (!unused.empty()) {
    Stack* stack = unused.back();
    unused.pop_back();
    return stack;
  }
  if (!arena) {
    map_arena();
  }
  auto* stack = new Stack;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  char* lowest = arena + made++ * kStackBytes;
  mprotect(lowest, page, PROT_NONE); // one that overflows ends the process instead of writing into the next
  stack->bottom = lowest + page;
  stack->bytes = kStackBytes - page;
  reset_stack(stack);
  return stack;
}

void give_stack(Stack* stack) {
  unused.push_back(stack);
}

void change_stack(Stack& from, Stack& to) {
  left = &from;
#ifdef OES_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.bytes);
#endif
#ifdef OES_EMULATION_UCONTEXT
  swapcontext(context_of(from), context_of(to));
#else
  oes_emulation_change_stack(&from.place, to.place);
#endif
#ifdef OES_ADDRESS_SANITIZER
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(from.fake, &bottom, &bytes);
  left->bottom = const_cast<char*>(static_cast<const char*>(bottom));
  left->bytes = bytes;
#endif
}

} // namespace oes::emulation
