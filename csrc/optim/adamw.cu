// A step of AdamW for all weights of a call on a GPU, with the gradient of the enmeshment loss and the
// energies of the new weights in the same pass over memory. adamw_threads.h holds the work of a thread.
//
// The kernels are: the factors of each weight; the update; where not all elements stay, those of keep.cu; the
// sums of the energies. The shapes alone determine the order of every sum: the bits are always the same.
#include "optim/cuda_plan.h"
#include "optim/kernel_parts.h"

#include <algorithm>

namespace modfast {
namespace {

// The weights are an argument of the first kernel, which leaves them in the device's memory for the others:
// this needs no copy to the device with a wait, and a CUDA graph stores them itself.
template <int N>
struct Batch {
  Matrix matrices[N];
};
constexpr int kFew = 8, kMany = 80;
static_assert(sizeof(Batch<kMany>) + 512 <= 32764, "beyond what a kernel's arguments may take");

// A block for each weight.
template <int N>
__global__ void __launch_bounds__(kThreads)
    prepare_weights(const __grid_constant__ Batch<N> batch, AdamWOptions options, Scalars scalars,
                    const Split* energies, int32_t first, AdamWMemory memory) {
  const Matrix& m = batch.matrices[blockIdx.x];
  const auto index = static_cast<int32_t>(first + blockIdx.x);
  if (threadIdx.x == 0) {
    memory.weights[index] = weight_of(m, options, scalars, energies);
    if (m.kept >= 0) memory.kept[m.kept] = begin_search(m);
  }
  for (int64_t item = threadIdx.x; item < m.items; item += kThreads) {
    memory.owners[m.first_item + item] = index;
  }
  if (m.kept >= 0) {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
      memory.counts[int64_t{m.kept} * kBins + bin] = 0;
    }
  }
}

// Blocks that a multiprocessor runs at least: as many as the registers of a thread allow without a spill.
template <class T>
constexpr int kBlocksOf = sizeof(T) == 8 ? 2 : 3;

// A block for each item of weights of one kind.
template <class T, class G>
__global__ void __launch_bounds__(kThreads, kBlocksOf<T>)
    update_weights(int64_t first, Scalars scalars, bool stochastic, AdamWMemory memory) {
  const int64_t item = first + blockIdx.x;
  const Weight& w = memory.weights[memory.owners[item]];
  if (w.skip) return;
  const int64_t own = item - w.matrix.first_item;
  if (w.matrix.kept >= 0) {
    auto* bins = dynamic_shared<uint32_t>();
    clear_bins(bins);
    thread_update<T, G>(w, scalars, stochastic, own, threadIdx.x, bins);
    add_bins(bins, memory.counts + int64_t{w.matrix.kept} * kBins);
  } else {
    Split sum = thread_update<T, G>(w, scalars, stochastic, own, threadIdx.x, nullptr);
    if (!w.matrix.sums) return;
    sum = block_sum(sum);
    if (threadIdx.x == 0) memory.partial[item] = sum;
  }
}

// A block for each item.
__global__ void __launch_bounds__(kThreads) sum_squares(AdamWMemory memory) {
  const Weight& w = memory.weights[memory.owners[blockIdx.x]];
  if (w.skip) return;
  const Split sum = block_sum(thread_squares(w.matrix, blockIdx.x - w.matrix.first_item, threadIdx.x));
  if (threadIdx.x == 0) memory.partial[blockIdx.x] = sum;
}

// A block for each weight. The numbers of steps advance here, after all weights that share them were
// prepared.
__global__ void __launch_bounds__(kThreads)
    finish_weights(AdamWMemory memory, const Split* energies, Split* new_energies) {
  const Weight& w = memory.weights[blockIdx.x];
  const Matrix& m = w.matrix;
  if (threadIdx.x == 0 && m.leads && !w.skip) *m.step = w.number;
  if (!m.sums) return;
  if (w.skip) {
    if (threadIdx.x == 0) new_energies[m.slot] = energies[m.slot];
    return;
  }
  Split sum{0.0, 0.0};
  for (int64_t item = threadIdx.x; item < m.items; item += kThreads) {
    sum.inside += memory.partial[m.first_item + item].inside;
    sum.across += memory.partial[m.first_item + item].across;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) new_energies[m.slot] = sum;
}

template <int N>
void launch_prepare(const AdamWCall& call, int64_t first, int64_t count, const AdamWMemory& memory,
                    cudaStream_t stream) {
  Batch<N> batch;
  std::copy_n(call.matrices.begin() + first, count, batch.matrices);
  launch(prepare_weights<N>, count, kThreads, 0, stream, batch, call.options, call.scalars, call.energies,
         static_cast<int32_t>(first), memory);
}

using Update = void (*)(int64_t first, Scalars scalars, bool stochastic, AdamWMemory memory);

template <class T>
Update update_for(DType grad) {
  switch (grad) {
    case DType::float32: return update_weights<T, float>;
    case DType::float16: return update_weights<T, Half>;
    default: return update_weights<T, BFloat>;
  }
}
Update update_for(const Matrix& m) {
  switch (m.dtype) {
    case DType::float64: return update_weights<double, double>;
    case DType::float32: return update_for<float>(m.grad_dtype);
    case DType::float16: return update_for<Half>(m.grad_dtype);
    default: return update_for<BFloat>(m.grad_dtype);
  }
}

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

namespace optim {

AdamWRoom adamw_room(const std::vector<Matrix>& matrices) {
  int64_t items = 0, kept = 0;
  for (const Matrix& m : matrices) {
    items += m.items;
    kept += m.kept >= 0;
  }
  AdamWRoom room{};
  room.owners = aligned(static_cast<int64_t>(matrices.size() * sizeof(Weight)));
  room.partial = room.owners + aligned(items * int64_t{sizeof(int32_t)});
  room.kept = room.partial + aligned(items * int64_t{sizeof(Split)});
  room.bins = room.kept + aligned(kept * int64_t{sizeof(Kept)});
  room.size = room.bins + kept * kBins * int64_t{sizeof(unsigned long long)};
  return room;
}

// Lays out the scratch memory and prepares all weights.
static AdamWMemory prepare_all(const AdamWCall& call, void* scratch, cudaStream_t stream) {
  const auto count = static_cast<int64_t>(call.matrices.size());
  const AdamWRoom room = adamw_room(call.matrices);
  auto* bytes = static_cast<unsigned char*>(scratch);
  const AdamWMemory memory{
      reinterpret_cast<Weight*>(bytes + room.weights), reinterpret_cast<int32_t*>(bytes + room.owners),
      reinterpret_cast<Split*>(bytes + room.partial), reinterpret_cast<Kept*>(bytes + room.kept),
      reinterpret_cast<unsigned long long*>(bytes + room.bins)};
  for (int64_t first = 0; first < count; first += kMany) {
    const int64_t here = std::min<int64_t>(kMany, count - first);
    const auto prepare = here <= kFew ? launch_prepare<kFew> : launch_prepare<kMany>;
    prepare(call, first, here, memory, stream);
  }
  return memory;
}

const char* cuda_adamw(const AdamWCall& call, void* scratch, void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  const auto count = static_cast<int64_t>(call.matrices.size());
  if (count == 0) return nullptr;
  const AdamWMemory memory = prepare_all(call, scratch, stream);
  for (int64_t first = 0; first < count;) {
    int64_t end = first, items = 0;
    bool counts = false;
    for (; end < count && kind_of(call.matrices[end]) == kind_of(call.matrices[first]); ++end) {
      items += call.matrices[end].items;
      counts = counts || call.matrices[end].kept >= 0;
    }
    if (items > 0) {
      launch(update_for(call.matrices[first]), items, kThreads, counts ? kBins * sizeof(uint32_t) : 0, stream,
             call.matrices[first].first_item, call.scalars, call.options.stochastic_rounding, memory);
    }
    first = end;
  }
  cuda_keep(call.matrices, memory, given_stream);
  launch(finish_weights, count, kThreads, 0, stream, memory, call.energies, call.new_energies);
  return outcome();
}

const char* cuda_labelled_energies(const AdamWCall& call, void* scratch, void* given_stream) {
  const auto stream = static_cast<cudaStream_t>(given_stream);
  const auto count = static_cast<int64_t>(call.matrices.size());
  if (count == 0) return nullptr;
  const AdamWMemory memory = prepare_all(call, scratch, stream);
  int64_t items = 0;
  for (const Matrix& m : call.matrices) items += m.items;
  if (items > 0) launch(sum_squares, items, kThreads, 0, stream, memory);
  launch(finish_weights, count, kThreads, 0, stream, memory, call.energies, call.new_energies);
  return outcome();
}

}  // namespace optim
}  // namespace modfast
