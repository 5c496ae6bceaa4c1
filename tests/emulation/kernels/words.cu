// Small kernels for test_emulation.py, which calls them by name: each says of one of CUDA's words what it
// should do, or does something wrong.
#include "common/launch.h"

#include <cuda_fp16.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

using modfast::dynamic_shared;
using modfast::launch;
using modfast::outcome;

constexpr int kBlock = 64;
int failures = 0;

void expect(bool good, const std::string& what) {
  if (good) return;
  std::printf("not as expected: %s\n", what.c_str());
  ++failures;
}

template <class T>
void expect_equal(const std::vector<T>& found, const std::vector<T>& expected, const std::string& what) {
  expect(found == expected, what);
}

template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), int64_t grid, int64_t block, size_t shared,
         const Arguments&... arguments) {
  launch(kernel, grid, block, shared, nullptr, arguments...);
  if (const char* error = outcome()) std::printf("error: %s\n", error);
}

// --- What is right

__global__ void shuffles(int* to, int* up, int* down, int* across, int* groups, double* wide) {
  const int t = threadIdx.x;
  to[t] = __shfl_sync(0xffffffffu, t, 5);
  up[t] = __shfl_up_sync(0xffffffffu, t, 3);
  down[t] = __shfl_down_sync(0xffffffffu, t, 4, 8);
  across[t] = __shfl_xor_sync(0xffffffffu, t, 1);
  groups[t] = __shfl_sync(0xffffffffu, t, 9, 8);
  wide[t] = __shfl_xor_sync(0xffffffffu, t + 0.5, 16);
}

void test_shuffles() {
  std::vector<int> to(kBlock), up(kBlock), down(kBlock), across(kBlock), groups(kBlock);
  std::vector<double> wide(kBlock);
  run(shuffles, 1, kBlock, 0, to.data(), up.data(), down.data(), across.data(), groups.data(), wide.data());
  for (int t = 0; t < kBlock; ++t) {
    const int warp = t / 32 * 32, lane = t % 32;
    expect(to[t] == warp + 5, "a shuffle from a lane");
    expect(up[t] == (lane < 3 ? t : t - 3), "a shuffle up");
    expect(down[t] == (lane % 8 + 4 < 8 ? t + 4 : t), "a shuffle down in groups of 8");
    expect(across[t] == (t ^ 1), "a shuffle across");
    expect(groups[t] == t / 8 * 8 + 1, "a shuffle from a lane in groups of 8, taken modulo 8");
    expect(wide[t] == (t ^ 16) + 0.5, "a shuffle of eight bytes");
  }
}

// Each half of a warp on its own.
__global__ void halves(unsigned* votes, int* any, int* all, unsigned* like) {
  const int t = threadIdx.x;
  const unsigned mask = t % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  if (t % 32 < 16) {
    votes[t] = __ballot_sync(mask, t % 2);
    any[t] = __any_sync(mask, t == 3);
  } else {
    votes[t] = __ballot_sync(mask, t % 4 == 0);
    any[t] = __any_sync(mask, t == 3);
  }
  all[t] = __all_sync(mask, t != 40);
  like[t] = __match_any_sync(mask, t % 3);
}

void test_votes() {
  std::vector<unsigned> votes(kBlock), like(kBlock);
  std::vector<int> any(kBlock), all(kBlock);
  run(halves, 1, kBlock, 0, votes.data(), any.data(), all.data(), like.data());
  for (int t = 0; t < kBlock; ++t) {
    const bool low = t % 32 < 16;
    expect(votes[t] == (low ? 0x0000aaaau : 0x11110000u), "a vote of half a warp");
    expect(any[t] == (t < 16), "whether any");
    expect(all[t] == (t / 16 != 2), "whether all");
    unsigned expected = 0;
    for (int lane = low ? 0 : 16; lane < (low ? 16 : 32); ++lane) {
      if ((t / 32 * 32 + lane) % 3 == t % 3) expected |= 1u << lane;
    }
    expect(like[t] == expected, "a match");
  }
}

__global__ void barriers(int* any, int* all, int* count) {
  const int t = threadIdx.x;
  any[t] = __syncthreads_or(t == 7);
  all[t] = __syncthreads_and(t != 7);
  count[t] = __syncthreads_count(t % 3);
}

void test_barriers() {
  std::vector<int> any(kBlock), all(kBlock), count(kBlock);
  run(barriers, 1, kBlock, 0, any.data(), all.data(), count.data());
  expect_equal(any, std::vector<int>(kBlock, 1), "__syncthreads_or");
  expect_equal(all, std::vector<int>(kBlock, 0), "__syncthreads_and");
  expect_equal(count, std::vector<int>(kBlock, 42), "__syncthreads_count");
}

__global__ void atomics(int* sums, unsigned* most, float* total, int* order) {
  __shared__ int in_block;
  if (threadIdx.x == 0) in_block = 0;
  __syncthreads();
  order[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(&in_block, 1);
  __syncthreads();
  if (threadIdx.x == 0) sums[blockIdx.x] = in_block;
  atomicMax(most, blockIdx.x * 100 + threadIdx.x);
  atomicAdd(total, 0.5f);
  atomicCAS(sums + gridDim.x, 0, 7);
}

void test_atomics() {
  std::vector<int> sums(4), order(3 * kBlock);
  unsigned most = 0;
  float total = 0;
  run(atomics, 3, kBlock, 0, sums.data(), &most, &total, order.data());
  expect_equal(sums, {kBlock, kBlock, kBlock, 7}, "atomic sums");
  expect(most == 200 + kBlock - 1, "an atomic maximum");
  expect(total == 1.5f * kBlock, "an atomic sum of floats");
  for (int t = 0; t < kBlock; ++t) std::printf("%d%c", order[t], t + 1 < kBlock ? ' ' : '\n');
}

struct Numbers {
  int numbers[4];
};
__global__ void __launch_bounds__(8)
    parameters(const __grid_constant__ Numbers given, Numbers* out, int64_t wide) {
  out[threadIdx.x] = given;
  out[threadIdx.x].numbers[0] += int(wide >> 32);
}

void test_parameters() {
  std::vector<Numbers> out(8);
  Numbers given{{1, 2, 3, 4}};
  launch(parameters, 1, 8, 0, nullptr, given, out.data(), int64_t{5} << 32);
  given.numbers[1] = 100;  // the launch has its own copy
  expect(out[7].numbers[0] == 0, "a kernel runs no earlier than somebody waits");
  cudaStreamSynchronize(nullptr);
  expect(out[7].numbers[0] == 6 && out[7].numbers[1] == 2, "parameters are copied at the launch");
}

__global__ void whole_cube(int* out) {
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * 24 + thread] = 1 + block * 24 + thread;
}

void test_indices() {
  std::vector<int> out(24 * 24), expected(24 * 24);
  for (int i = 0; i < 24 * 24; ++i) expected[i] = i + 1;
  emulation::launch(whole_cube, dim3(2, 3, 4), dim3(4, 3, 2), 0, nullptr, out.data());
  expect(outcome() == nullptr, "three dimensions");
  expect_equal(out, expected, "indices in three dimensions");
}

__global__ void halving(unsigned short* out, const float* in) {
  out[threadIdx.x] = __half_as_ushort(__float2half_rn(in[threadIdx.x]));
}

void test_halves() {
  const std::vector<float> in{1.0f,     -2.0f, 65504.0f, 65520.0f, 1.0f + 0x1p-11f, 1.0f + 0x1.8p-10f,
                              0x1p-24f, -0.0f};
  std::vector<unsigned short> out(8);
  run(halving, 1, 8, 0, out.data(), in.data());
  expect_equal(out, {0x3c00, 0xc000, 0x7bff, 0x7c00, 0x3c00, 0x3c02, 0x0001, 0x8000}, "rounding to half");
  expect(__half2float(__ushort_as_half(0x3555)) == 0x1.554p-2f, "a half as float");
}

__global__ void add_one(int* number) { *number += 1; }

void test_streams() {
  int number = 0, copy = -1, zero = 9;
  cudaEvent_t between;
  launch(add_one, 1, 1, 0, nullptr, &number);
  cudaEventCreateWithFlags(&between, cudaEventDisableTiming);
  cudaEventRecord(between, nullptr);
  cudaMemcpyAsync(&copy, &number, sizeof number, cudaMemcpyDeviceToHost, nullptr);
  launch(add_one, 1, 1, 0, nullptr, &number);
  cudaMemsetAsync(&zero, 0, sizeof zero, nullptr);
  expect(number == 0 && copy == -1, "nothing runs before somebody waits");
  expect(cudaEventQuery(between) == cudaErrorNotReady, "an event that has not happened");
  cudaEventSynchronize(between);
  expect(number == 1 && copy == -1, "what came before the event has run, nothing more");
  expect(cudaEventQuery(between) == cudaSuccess, "an event that has happened");
  cudaEventDestroy(between);
  expect(outcome() == nullptr && number == 2 && copy == 1 && zero == 0, "the order of a stream is kept");
}

// A tree in shared memory, with a barrier at each level but the last warp's, which has its own.
__global__ void tree(int* out) {
  __shared__ int sums[kBlock];
  sums[threadIdx.x] = int(threadIdx.x);
  __syncthreads();
  if (threadIdx.x < 32) {
    sums[threadIdx.x] += sums[threadIdx.x + 32];
    __syncwarp();
    for (int distance = 16; distance > 0; distance /= 2) {
      const int other = threadIdx.x < unsigned(distance) ? sums[threadIdx.x + distance] : 0;
      __syncwarp();
      sums[threadIdx.x] += other;
      __syncwarp();
    }
  }
  if (threadIdx.x == 0) *out = sums[0];
}

void test_warps_wait_on_their_own() {
  int sum = 0;
  run(tree, 1, kBlock, 0, &sum);
  expect(sum == kBlock * (kBlock - 1) / 2, "a sum by a tree");
}

// --- What is wrong

__global__ void no_barrier(int* out) {
  __shared__ int numbers[kBlock];
  numbers[threadIdx.x] = int(threadIdx.x);
  out[threadIdx.x] = numbers[threadIdx.x ^ 1];
}
__global__ void read_then_write(int* out) {
  __shared__ int number;
  if (threadIdx.x == 0) number = 1;
  __syncthreads();
  out[threadIdx.x] = number;
  if (threadIdx.x == 40) number = 2;
}
__global__ void unwritten(int* out) {
  __shared__ int numbers[kBlock];
  if (threadIdx.x != 9) numbers[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = numbers[threadIdx.x];
}
__global__ void from_the_block_before(int* out) {
  __shared__ int number;
  if (blockIdx.x == 0) number = 1;
  out[blockIdx.x] = number;
}
__global__ void out_of_bounds(int* out) {
  __shared__ int numbers[kBlock];
  __shared__ int others[kBlock];
  numbers[threadIdx.x + 1] = 1;
  others[threadIdx.x] = 2;
  __syncthreads();
  out[threadIdx.x] = numbers[threadIdx.x] + others[threadIdx.x];
}
__global__ void dynamic_out_of_bounds(int* out) {
  int* numbers = dynamic_shared<int>();
  numbers[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = numbers[threadIdx.x];
}
__global__ void missed_barrier(int* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void two_barriers(int* out) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}
__global__ void mask_without_itself(int* out) { out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 1); }
__global__ void mask_names_returned(int* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
}
__global__ void mask_names_missing(int* out) { out[threadIdx.x] = int(__ballot_sync(0xffffffffu, 1)); }
__global__ void masks_differ(int* out) {
  out[threadIdx.x] = __any_sync(threadIdx.x % 32 < 16 ? 0xffffffffu : 0xffff0000u, 1);
}
__global__ void reads_beyond_mask(int* out) {
  if (threadIdx.x % 2 == 0) out[threadIdx.x] = __shfl_sync(0x55555555u, 1, 1);
}
__global__ void waits_elsewhere(int* out) {
  if (threadIdx.x == 31) __syncthreads();
  out[threadIdx.x] = __any_sync(0xffffffffu, 1);
  if (threadIdx.x != 31) __syncthreads();
}

__global__ void breaks_before_it_writes(int* out) {
  if (threadIdx.x == 0) __syncthreads();
  out[threadIdx.x] = 0;
}
__global__ void never_runs(int* out) { out[0] = 7; }

using Wrong = void (*)(int*);
struct Case {
  Wrong kernel;
  int64_t grid, block;
  size_t shared;
};
const std::map<std::string, Case> wrong{
    {"no_barrier", {no_barrier, 1, kBlock, 0}},
    {"read_then_write", {read_then_write, 1, kBlock, 0}},
    {"unwritten", {unwritten, 1, kBlock, 0}},
    {"from_the_block_before", {from_the_block_before, 2, 1, 0}},
    {"out_of_bounds", {out_of_bounds, 1, kBlock, 0}},
    {"dynamic_out_of_bounds", {dynamic_out_of_bounds, 1, kBlock, kBlock * sizeof(int) - 4}},
    {"missed_barrier", {missed_barrier, 1, kBlock, 0}},
    {"two_barriers", {two_barriers, 1, kBlock, 0}},
    {"mask_without_itself", {mask_without_itself, 1, kBlock, 0}},
    {"mask_names_returned", {mask_names_returned, 1, kBlock, 0}},
    {"mask_names_missing", {mask_names_missing, 1, 40, 0}},
    {"masks_differ", {masks_differ, 1, kBlock, 0}},
    {"reads_beyond_mask", {reads_beyond_mask, 1, kBlock, 0}},
    {"waits_elsewhere", {waits_elsewhere, 1, kBlock, 0}},
    {"large_block", {no_barrier, 1, 1025, 0}},
    {"empty_block", {no_barrier, 1, 0, 0}},
    {"empty_grid", {no_barrier, 0, kBlock, 0}},
    {"large_grid", {no_barrier, int64_t{1} << 32 | 1, kBlock, 0}},
    {"shared_of_both_kinds", {out_of_bounds, 1, kBlock, (48 << 10) - 2 * kBlock * sizeof(int) + 1}},
    {"much_shared", {dynamic_out_of_bounds, 1, kBlock, (48 << 10) + 1}},
};

}  // namespace

namespace emulation {
void set_seed(uint64_t seed);
}

int main(int count, char** arguments) {
  emulation::set_seed(count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0);
  const std::string name = count > 1 ? arguments[1] : "";
  if (name == "right") {
    test_shuffles();
    test_votes();
    test_barriers();
    test_atomics();
    test_parameters();
    test_indices();
    test_halves();
    test_streams();
    test_warps_wait_on_their_own();
    return failures != 0;
  }
  if (name == "after_a_failure") {
    std::vector<int> out(kBlock, 1);
    launch(breaks_before_it_writes, 1, kBlock, 0, nullptr, out.data());
    launch(never_runs, 1, 1, 0, nullptr, out.data());
    const char* error = outcome();
    std::printf("error: %s\n%s\n", error ? error : "none", out[0] == 7 ? "ran" : "did not run");
    run(add_one, 1, 1, 0, out.data());  // later launches do
    return 0;
  }
  const Case& given = wrong.at(name);
  std::vector<int> out(2048);
  run(given.kernel, given.grid, given.block, given.shared, out.data());
  run(add_one, 1, 1, 0, out.data());  // an error is forgotten once it is told
  return 0;
}
