// Kernels as PyTorch calls them, with every exception ended inside this library.
//
// PyTorch calls a kernel through a C function and has a C++ library of its own. A compiler for portable
// binaries links another one into this library, so PyTorch could not read an exception that came through, and
// unwinding the two together crashes. PyTorch throws in our stead: the message reaches it as text.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdio>
#include <exception>
#include <new>

namespace modfast {

using Boxed = void (*)(StableIValue* stack, uint64_t inputs, uint64_t outputs);

struct Failure {
  char message[4096];  // a longer message is cut
};

// Runs a kernel; returns whether it failed, and why. Never inline: see call_kernel.
template <Boxed kernel>
#if defined(__GNUC__)
__attribute__((noinline))
#endif
bool fails(StableIValue* stack, uint64_t inputs, uint64_t outputs, Failure* failure) noexcept {
  const auto tell = [&](const char* text) {
    std::snprintf(failure->message, sizeof failure->message, "%s", text);
    return true;
  };
  try {
    kernel(stack, inputs, outputs);
    return false;
  } catch (const std::bad_alloc&) {
    return tell("modfast: there is not enough memory");
  } catch (const std::exception& error) {
    return tell(error.what());
  } catch (...) {
    return tell("modfast: an unknown error");
  }
}

// PyTorch's exception leaves through this function, which must therefore hold nothing that has a destructor
// and catch nothing: then no code of this library's C++ runtime takes part.
template <Boxed kernel>
void call_kernel(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  Failure failure;
  if (fails<kernel>(stack, inputs, outputs, &failure)) {
    aoti_torch_check(false, "call_kernel", __FILE__, __LINE__, failure.message);
  }
}

}  // namespace modfast

// In place of TORCH_BOX.
#define MODFAST_BOX(function) (&modfast::call_kernel<&TORCH_BOX(function)>)
