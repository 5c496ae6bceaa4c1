// What tests ask of the emulated device, and what its bindings use of PyTorch's CUDA.
#include "common/exported.h"
#include "runtime.h"

// PyTorch's functions for CUDA, as the bindings call them: here a tensor of the CPU counts as one of the
// device. Hidden, these take the place of PyTorch's own in this library alone.
#define STAND_IN extern "C" __attribute__((visibility("hidden")))
extern "C" int32_t aoti_torch_device_type_cpu();
STAND_IN int32_t aoti_torch_device_type_cuda() { return aoti_torch_device_type_cpu(); }
STAND_IN int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = emulation::current_stream();
  return 0;
}
STAND_IN int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = nullptr;
  return 0;
}
STAND_IN int32_t aoti_torch_delete_device_guard(void*) { return 0; }

// Chooses the order in which blocks and threads run: 0 is their own, another number shuffles them.
MODFAST_EXPORTED void modfast_set_seed(uint64_t seed) noexcept { emulation::set_seed(seed); }

// How many kernels have run.
MODFAST_EXPORTED uint64_t modfast_launches() noexcept { return emulation::number_of_launches(); }
