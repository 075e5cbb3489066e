// Stacks that one thread of the host changes between.
#pragma once

#include <cstddef>
#include <cstdint>

namespace oes::emulation {

struct Stack {
  char* bottom = nullptr;
  size_t bytes = 0;
  void* fake = nullptr; // AddressSanitizer's
  void* place = nullptr; // where it was left
};

// The stack on which a function runs that is called anew whenever the stack is taken after reset_stack().
Stack* take_stack(void (*start)());
// One whose function waits to be resumed, where it left off or, after reset_stack(), from its start.
void give_stack(Stack* stack);
// Forgets what ran on it.
void reset_stack(Stack* stack);

// Leaves `from` for `to`; returns when something changes back.
void change_stack(Stack& from, Stack& to);
// The first thing that a function does on a new stack.
void stack_entered();

// All stacks lie in here.
inline const char* stacks_begin = nullptr;
inline size_t stacks_bytes = 0;

inline bool on_stack(const void* address) {
  return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(stacks_begin) < stacks_bytes;
}

} // namespace oes::emulation
