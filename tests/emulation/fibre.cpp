#include "fibre.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Stores the registers that a function must keep on the present stack, writes where it stands to *from, and
// goes on with the stack that stands at `to`. The contexts of the C library do the same, with two system
// calls.
extern "C" void emulation_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
  .text
  .hidden emulation_switch
  .globl emulation_switch
  .type emulation_switch, @function
emulation_switch:
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
  .size emulation_switch, .-emulation_switch
)");
constexpr int kReturn = 6, kFrame = 8;  // words; the return address lies behind the registers
#elif defined(__aarch64__)
asm(R"(
  .text
  .hidden emulation_switch
  .globl emulation_switch
  .type emulation_switch, %function
emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size emulation_switch, .-emulation_switch
)");
constexpr int kReturn = 11, kFrame = 20;
#else
#error "the emulated device runs on x86-64 and arm64"
#endif

namespace emulation {
namespace {

constexpr size_t kStackBytes = 256 << 10, kOutermostBytes = 4 << 10;

Fibre* entered = nullptr;
void (*to_run)() = nullptr;

}  // namespace

Fibre::Fibre() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(memory);
  mprotect(stack_, page, PROT_NONE);  // a stack that is too small ends the program here
}

Fibre::~Fibre() { munmap(stack_, kStackBytes); }

void Fibre::drop() {
#if defined(__SANITIZE_ADDRESS__)
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  __asan_unpoison_memory_region(stack_ + page, kStackBytes - page);
#endif
}

void Fibre::begin(void (*run)()) {
#if defined(__SANITIZE_ADDRESS__)
  // What left for good is still in its outermost functions.
  __asan_unpoison_memory_region(stack_ + kStackBytes - kOutermostBytes, kOutermostBytes);
  shadow_ = nullptr;
#endif
  to_run = run;
  auto* top = reinterpret_cast<uintptr_t*>(stack_ + kStackBytes) - kFrame;
  for (int i = 0; i < kFrame; ++i) top[i] = 0;
  top[kReturn] = reinterpret_cast<uintptr_t>(&Fibre::start);
  inside_ = top;
}

void Fibre::start() {
  entered->arrive();
  to_run();
  __builtin_trap();  // it left before
}

void Fibre::arrive() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(shadow_, &outside_stack_, &outside_bytes_);
#endif
}

void Fibre::enter() {
  entered = this;
#if defined(__SANITIZE_ADDRESS__)
  void* shadow;
  __sanitizer_start_switch_fiber(&shadow, stack_, kStackBytes);
#endif
  emulation_switch(&outside_, inside_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(shadow, nullptr, nullptr);
#endif
}

void Fibre::leave() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&shadow_, outside_stack_, outside_bytes_);
#endif
  emulation_switch(&inside_, outside_);
  arrive();
}

}  // namespace emulation
