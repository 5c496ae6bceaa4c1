// Sets all but the largest elements of some weights to 0, on a GPU; keep_threads.h says how. No sort, no
// wait: whether a search is over, the device finds out itself.
#include "optim/kernel_parts.h"

#include <algorithm>

namespace modfast {
namespace {

// A block for each item of the weights of which not all elements stay.
__global__ void __launch_bounds__(kThreads, 4) count_digits(AdamWMemory memory) {
  const Weight& w = memory.weights[memory.owners[blockIdx.x]];
  const Matrix& m = w.matrix;
  const Kept kept = memory.kept[m.kept];
  if (w.skip || kept.done) return;
  __shared__ uint32_t bins[kBins];
  clear_bins(bins);
  thread_count(m, kept, blockIdx.x - m.first_item, threadIdx.x, bins);
  add_bins(bins, memory.counts + int64_t{m.kept} * kBins);
}

// A block for each of these weights. It leaves counts of 0.
__global__ void __launch_bounds__(kThreads) choose_digits(AdamWMemory memory) {
  const Kept kept = memory.kept[blockIdx.x];
  if (memory.weights[blockIdx.x].skip || kept.done) return;
  constexpr int kEach = kBins / kThreads;
  // Thread 0 has the largest digits.
  const int top = kBins - 1 - static_cast<int>(threadIdx.x) * kEach;
  unsigned long long* counts = memory.counts + int64_t{blockIdx.x} * kBins;
  int64_t own[kEach], sum = 0;
  for (int i = 0; i < kEach; ++i) {
    own[i] = static_cast<int64_t>(counts[top - i]);
    counts[top - i] = 0;
    sum += own[i];
  }
  // The sums of all threads before each one: within warps, then those of the warps before.
  __shared__ int64_t of_warp[kThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t until = sum;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t other = __shfl_up_sync(kAllLanes, until, distance);
    if (lane >= distance) until += other;
  }
  if (lane == 31) of_warp[warp] = until;
  __syncthreads();
  for (int before = 0; before < warp; ++before) until += of_warp[before];
  int64_t larger = until - sum;
  if (larger >= kept.wanted || until < kept.wanted) return;
  for (int i = 0; i < kEach; ++i) {
    if (larger + own[i] >= kept.wanted) {
      Kept next = kept;
      set_digit(&next, static_cast<uint32_t>(top - i), larger, own[i]);
      memory.kept[blockIdx.x] = next;
      return;
    }
    larger += own[i];
  }
}

__global__ void __launch_bounds__(kThreads, 4) set_zeros(AdamWMemory memory) {
  const Weight& w = memory.weights[memory.owners[blockIdx.x]];
  if (w.skip) return;
  const Matrix& m = w.matrix;
  const Kept kept = memory.kept[m.kept];
  Split sum = thread_set_zeros(m, kept, blockIdx.x - m.first_item, threadIdx.x);
  if (!m.sums) return;
  sum = block_sum(sum);
  if (threadIdx.x == 0) memory.partial[blockIdx.x] = sum;
}

}  // namespace

void optim::cuda_keep(const std::vector<Matrix>& matrices, const AdamWMemory& memory, void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  int64_t items = 0, count = 0;
  int digits = 1;
  for (const Matrix& m : matrices) {
    if (m.kept < 0) continue;
    items += m.items;
    ++count;
    digits = std::max(digits, (rank_bits(m) + kDigitBits - 1) / kDigitBits);
  }
  if (items == 0) return;
  for (int digit = 0; digit < digits; ++digit) {
    // The update has counted the first digits.
    if (digit > 0) launch(count_digits, items, kThreads, 0, stream, memory);
    launch(choose_digits, count, kThreads, 0, stream, memory);
  }
  launch(set_zeros, items, kThreads, 0, stream, memory);
}

}  // namespace modfast
