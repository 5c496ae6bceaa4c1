// The interface of the CUDA kernels of a step of AdamW. It has no CUDA type, so that the host compiler needs
// no CUDA header; a stream is passed as a pointer. Nothing here waits for the device: what the host does not
// know (the numbers of steps, whether gradients are finite, energies) the device reads itself.
#pragma once

#include "optim/keep_threads.h"

#include <cstdint>
#include <vector>

namespace modfast::optim {

struct AdamWCall {
  std::vector<Matrix> matrices;  // as arrange() leaves them
  AdamWOptions options;
  Scalars scalars;
  const Split* energies;  // of the weights of the loss, before the step and after it; may be the same memory
  Split* new_energies;
};

// Scratch memory: where its parts begin, in bytes from the first, and its size.
struct AdamWRoom {
  int64_t weights, owners, partial, kept, bins, size;
};
AdamWRoom adamw_room(const std::vector<Matrix>& matrices);

// Makes the step. memory: of the room's size, aligned to 16 bytes. Returns nullptr or an error message.
const char* cuda_adamw(const AdamWCall& call, void* memory, void* stream);

// Writes the energies of weights as they are, by a pass of its own, into new_energies.
const char* cuda_labelled_energies(const AdamWCall& call, void* memory, void* stream);

// The kernels' part of the scratch memory.
struct AdamWMemory {
  Weight* weights;
  int32_t* owners;             // for each item the weight that it is of
  Split* partial;              // for each item its part of the energies
  Kept* kept;                  // for each weight of which not all elements stay
  unsigned long long* counts;  // for each of these, kBins
};

// Sets all but the largest elements to 0. The first `kept` weights are those of which not all stay, and their
// leading digits are counted.
void cuda_keep(const std::vector<Matrix>& matrices, const AdamWMemory& memory, void* stream);

}  // namespace modfast::optim
