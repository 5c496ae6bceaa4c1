// The kernels are compiled as for the thread sanitizer, which calls a function at each access to memory; the
// functions here take the place of the sanitizer's own. For each byte of shared memory they note who wrote it
// and who read it since the last barrier.
#include "memory.h"

#include "block.h"
#include "emulation.h"
#include "symbols.h"

#include <algorithm>
#include <string>
#include <vector>

namespace emulation {
namespace {

constexpr int kSeveral = -1, kAtomic = -2;

// Who used a byte last. An epoch ends when all threads of the block have waited; a phase of a warp ends when
// its threads have.
struct Use {
  uint64_t epoch = 0, phase = 0;
  int thread = 0, warp = 0;  // or kSeveral; thread may be kAtomic
};

struct Mark {
  Use written, read;
};

struct Region {
  uintptr_t begin = 0, end = 0;
  std::vector<Mark> marks;
  bool holds(uintptr_t address) const { return address - begin < end - begin; }
};

constexpr uintptr_t kGuardBytes = 64;

Region variables, dynamic;
uint64_t epoch = 1, first_epoch = 1;  // the present one, and the first one of the block
std::vector<uint64_t> phases(1024 / kWarpSize);

void find_variables() {
  static const bool found = [] {
    const auto& all = shared_variables();
    if (all.empty()) return true;
    variables.begin = all.front().begin - kGuardBytes;
    variables.end = all.back().end + kGuardBytes;
    variables.marks.resize(variables.end - variables.begin);
    return true;
  }();
  static_cast<void>(found);
}

// The name of the variable at an address.
std::string name_at(const Region& region, uintptr_t address) {
  if (&region == &dynamic) return "dynamic shared memory, byte " + std::to_string(address - region.begin);
  for (const auto& each : shared_variables()) {
    if (each.begin <= address && address < each.end) {
      return "shared variable " + each.name + ", byte " + std::to_string(address - each.begin);
    }
  }
  return "shared memory";
}

void check_bounds(const Region& region, uintptr_t address, size_t bytes, const char* action) {
  if (&region == &dynamic) {
    if (address + bytes <= region.end - kGuardBytes) return;
    fail(std::string(action) + " byte " + std::to_string(address - region.begin) +
         " of dynamic shared memory, which has " + std::to_string(region.end - kGuardBytes - region.begin));
  }
  const auto& all = shared_variables();
  auto next = std::upper_bound(all.begin(), all.end(), address,
                               [](uintptr_t at, const SharedVariable& each) { return at < each.begin; });
  if (next != all.begin() && address + bytes <= std::prev(next)->end) return;
  std::string near = next == all.begin() ? "the first variable" : std::prev(next)->name;
  const auto offset = next == all.begin() ? 0 : address - std::prev(next)->begin;
  fail(std::string(action) + " shared memory that is in no variable, at byte " + std::to_string(offset) +
       " of " + near +
       (next == all.begin()
            ? ""
            : ", which has " + std::to_string(std::prev(next)->end - std::prev(next)->begin)));
}

int warp_of(int thread) { return thread / kWarpSize; }

Use used_now(int thread) { return {epoch, phases[warp_of(thread)], thread, warp_of(thread)}; }

// Whether a use lies between this thread's last barrier and its present access, and is another thread's.
bool clashes(const Use& use, int thread) {
  if (use.epoch < epoch || use.thread == thread) return false;
  return use.warp != warp_of(thread) || use.phase == phases[warp_of(thread)];
}

std::string name_of(const Use& use) {
  if (use.thread == kAtomic) return "an atomic operation has";
  return use.thread == kSeveral ? "other threads have" : "thread " + std::to_string(use.thread) + " has";
}

[[noreturn]] void fail_at(const char* action, const Region& region, uintptr_t address,
                          const std::string& why) {
  fail(action + (" " + name_at(region, address)) + ", which " + why);
}

void require_written(const Mark& mark, const char* action, const Region& region, uintptr_t address) {
  if (mark.written.epoch < first_epoch)
    fail_at(action, region, address, "no thread of this block has written");
}

void require_no_clash(const Use& use, const char* did, const char* action, const Region& region,
                      uintptr_t address) {
  if (clashes(use, current_thread()))
    fail_at(action, region, address, name_of(use) + did + " since the last barrier");
}

void note_read(Region& region, uintptr_t address, size_t bytes) {
  check_bounds(region, address, bytes, "reads");
  const Use now = used_now(current_thread());
  for (size_t i = 0; i < bytes; ++i) {
    Mark& mark = region.marks[address - region.begin + i];
    require_written(mark, "reads", region, address + i);
    require_no_clash(mark.written, " written it", "reads", region, address + i);
    const Use before = mark.read;
    mark.read = now;
    if (!clashes(before, now.thread)) continue;
    mark.read.thread = kSeveral;
    if (before.warp != now.warp) mark.read.warp = kSeveral;
  }
}

void note_write(Region& region, uintptr_t address, size_t bytes) {
  check_bounds(region, address, bytes, "writes");
  for (size_t i = 0; i < bytes; ++i) {
    Mark& mark = region.marks[address - region.begin + i];
    require_no_clash(mark.written, " written it", "writes", region, address + i);
    require_no_clash(mark.read, " read it", "writes", region, address + i);
    mark.written = used_now(current_thread());
  }
}

// Calls f(region) if a thread runs and the address is in shared memory.
template <class F>
inline void in_shared(const void* pointer, const F& f) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (variables.holds(address)) {
    if (runs_thread()) f(variables, address);
  } else if (dynamic.holds(address)) {
    if (runs_thread()) f(dynamic, address);
  }
}

inline void on_read(const void* pointer, size_t bytes) {
  in_shared(pointer, [&](Region& region, uintptr_t address) { note_read(region, address, bytes); });
}
inline void on_write(const void* pointer, size_t bytes) {
  in_shared(pointer, [&](Region& region, uintptr_t address) { note_write(region, address, bytes); });
}

}  // namespace

void begin_shared(const void* memory, size_t bytes) {
  find_variables();
  first_epoch = ++epoch;
  dynamic.begin = reinterpret_cast<uintptr_t>(memory);
  dynamic.end = dynamic.begin + bytes + kGuardBytes;
  if (dynamic.marks.size() < bytes + kGuardBytes) dynamic.marks.resize(bytes + kGuardBytes);
}

void all_have_waited() { ++epoch; }
void warp_has_waited(int warp) { ++phases[warp]; }

size_t shared_bytes_in_all() {
  size_t bytes = 0;
  for (const auto& each : shared_variables()) bytes += each.end - each.begin;
  return bytes;
}

void note_atomic(const void* pointer, size_t bytes) {
  in_shared(pointer, [&](Region& region, uintptr_t address) {
    check_bounds(region, address, bytes, "changes");
    for (size_t i = 0; i < bytes; ++i) {
      Mark& mark = region.marks[address - region.begin + i];
      require_written(mark, "changes", region, address + i);
      if (mark.written.thread != kAtomic)
        require_no_clash(mark.written, " written it", "changes", region, address + i);
      if (mark.read.thread != kAtomic)
        require_no_clash(mark.read, " read it", "changes", region, address + i);
      mark.written = mark.read = {epoch, 0, kAtomic, kSeveral};
    }
  });
}

}  // namespace emulation

#define HOOKS(bytes)                                                             \
  void __tsan_read##bytes(void* at) { emulation::on_read(at, bytes); }           \
  void __tsan_write##bytes(void* at) { emulation::on_write(at, bytes); }         \
  void __tsan_unaligned_read##bytes(void* at) { emulation::on_read(at, bytes); } \
  void __tsan_unaligned_write##bytes(void* at) { emulation::on_write(at, bytes); }
extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* at, unsigned long bytes) { emulation::on_read(at, bytes); }
void __tsan_write_range(void* at, unsigned long bytes) { emulation::on_write(at, bytes); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
