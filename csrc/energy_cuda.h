// What the CUDA kernels offer their binding. No CUDA type here: the host compiler needs no CUDA header.
#pragma once

namespace modfast {

int launch_placeholder(double* value, void* stream);

}  // namespace modfast
