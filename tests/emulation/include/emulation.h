// A GPU on the CPU, for tests: what a kernel and its launch need of it.
//
// A launch waits in its stream. When the host waits or asks for errors, the kernel runs: block after block,
// in an order that a seed decides. The threads of a block are fibres: each runs until it reaches a barrier or
// an exchange within its warp, and goes on when all threads that belong to it have arrived. Which of those
// that may run is next, the seed decides.
//
// What is wrong becomes the error of the launch, with the names of kernel, block and thread: a barrier that
// some threads miss, an exchange whose mask lies, shared memory that is read before it is written, that two
// threads use without a barrier between, or that is out of bounds; and what a device's limits forbid.
//
// Emulation cannot show how fast a kernel is; what the device's caches and its memory model allow (between
// two barriers a thread here runs alone); what depends on real concurrency of blocks and of streams; whether
// a pointer leads to the device's or to the host's memory, since here both are one; and the limits of
// __launch_bounds__, registers and local memory. Of shared memory it does not see what a function gets as an
// argument by value: kernels copy it to a variable first. A __syncwarp of some lanes counts for their whole
// warp. Of global memory it sees nothing: neither what was not written, nor two threads that meet there, but
// by the shuffled order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using uint3 = dim3;

struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace emulation {

constexpr int kWarpSize = 32;

// The indices of the thread that runs now, and the sizes of its launch.
struct Here {
  dim3 thread, block, block_size, grid_size;
};
extern Here here;

// Puts a launch into a stream. `function` names the kernel; `parameters` counts their bytes.
void launch(const void* function, dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
            size_t parameters, std::function<void()> run_thread);

// Copies the arguments, as a launch does.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
            const Arguments&... arguments) {
  launch(reinterpret_cast<const void*>(kernel), grid, block, shared, stream, (sizeof(Parameters) + ... + 0),
         [kernel, arguments...] { kernel(static_cast<Parameters>(arguments)...); });
}

void* dynamic_shared();

// Before and behind dynamic shared memory: as much as a kernel that is given too little of it may miss.
constexpr size_t kDynamicGuardBytes = 32768;

// A place in the source, to tell one barrier from another.
struct Site {
  const char* file;
  int line;
};

// Waits for all threads of the block; returns how many of them gave a number other than zero.
int barrier(const char* kind, int number, Site site);

// What the lanes of a mask do together: each gives a number, and gets that of another lane, or what all gave.
enum class Exchange { from_lane, ballot, match, sync };
uint64_t exchange(Exchange kind, unsigned mask, uint64_t number, int source, Site site);

// The lane from which a shuffle reads, or the thread's own if the other is beyond the group of `width` lanes.
enum class Shuffle { to, up, down, across };
int source_lane(Shuffle kind, int distance, int width);

template <class T>
T shuffle(Shuffle kind, unsigned mask, T number, int distance, int width, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "shuffles take at most eight bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &number, sizeof(T));
  bits = exchange(Exchange::from_lane, mask, bits, source_lane(kind, distance, width), site);
  std::memcpy(&number, &bits, sizeof(T));
  return number;
}

// Marks shared memory that an atomic operation uses: threads may do that without a barrier between.
void note_atomic(const void* address, size_t bytes);

// Not checked by itself, since the note stands for it.
template <class T, class F>
__attribute__((noinline, no_sanitize_thread)) T atomically(T* address, const F& change) {
  note_atomic(address, sizeof(T));
  const T before = *address;
  *address = change(before);
  return before;
}

}  // namespace emulation
