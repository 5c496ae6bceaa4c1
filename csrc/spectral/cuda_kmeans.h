// The interface of k-means on a GPU; see cuda.h.
#pragma once

#include "spectral/spectral.h"

namespace modfast {

// The bytes of memory that cuda_k_means needs.
int64_t k_means_room(const KMeans& problem);

// As on the CPU; see spectral.h. All pointers are the device's; labels has a number for each point, cost and
// iterations have one. Waits for the device every few iterations, to see whether points still move.
const char* cuda_k_means(const KMeans& problem, const float* points, const float* weights, void* room,
                         int64_t* labels, double* cost, int64_t* iterations, void* stream);

}  // namespace modfast
