// The kernels are compiled as for the thread sanitizer, which calls a function at each access to memory; the
// functions here take the place of the sanitizer's own. For every four bytes of shared memory they note who
// wrote them and who read them since the last barrier. Smaller numbers share a note with their neighbours:
// for these it says only whether one of them was written.
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
constexpr size_t kGrain = 4;
constexpr uintptr_t kGuardBytes = 64;  // before and behind the variables in shared memory

// Who used a grain last. An epoch ends when all threads of the block have waited; a phase of a warp ends when
// its threads have.
struct Use {
  uint64_t epoch = 0, phase = 0;
  int thread = 0, warp = 0;  // or kSeveral; thread may be kAtomic
};

struct Mark {
  Use written, read;
};

struct Region {
  uintptr_t begin = 0, end = 0;  // with the guards
  std::vector<Mark> marks;
  bool holds(uintptr_t address) const { return address - begin < end - begin; }
  Mark& mark(uintptr_t address) { return marks[(address - begin) / kGrain]; }
  void set(uintptr_t first, uintptr_t last, uintptr_t guard) {
    begin = first / kGrain * kGrain - guard;
    end = last + guard;
    if (marks.size() < (end - begin) / kGrain + 1) marks.resize((end - begin) / kGrain + 1);
  }
};

Region variables, dynamic;
uint64_t epoch = 1, first_epoch = 1;  // the present one, and the first one of the block
std::vector<uint64_t> phases(1024 / kWarpSize);

void find_variables() {
  static const bool found = [] {
    const auto& all = shared_variables();
    if (!all.empty()) variables.set(all.front().begin, all.back().end, kGuardBytes);
    return true;
  }();
  static_cast<void>(found);
}

// The name of the variable at an address.
std::string name_at(const Region& region, uintptr_t address) {
  if (&region == &dynamic)
    return "dynamic shared memory, byte " + std::to_string(address - region.begin - kDynamicGuardBytes);
  for (const auto& each : shared_variables()) {
    if (each.begin <= address && address < each.end) {
      return "shared variable " + each.name + ", byte " + std::to_string(address - each.begin);
    }
  }
  return "shared memory";
}

[[noreturn]] void fail_outside(const Region& region, uintptr_t address, const char* action) {
  if (&region == &dynamic) {
    fail(std::string(action) + " byte " +
         std::to_string(int64_t(address - region.begin - kDynamicGuardBytes)) +
         " of dynamic shared memory, which has " +
         std::to_string(region.end - region.begin - 2 * kDynamicGuardBytes));
  }
  // The variable to which it is next.
  const auto& all = shared_variables();
  const auto distance = [address](const SharedVariable& each) {
    return address < each.begin ? each.begin - address : address - each.end;
  };
  const auto& next = *std::min_element(
      all.begin(), all.end(), [&](const auto& a, const auto& b) { return distance(a) < distance(b); });
  fail(std::string(action) + " byte " + std::to_string(int64_t(address - next.begin)) +
       " of shared variable " + next.name + ", which has " + std::to_string(next.end - next.begin));
}

void check_bounds(const Region& region, uintptr_t address, size_t bytes, const char* action) {
  if (&region == &dynamic) {
    if (address >= region.begin + kDynamicGuardBytes && address + bytes <= region.end - kDynamicGuardBytes)
      return;
  } else {
    static SharedVariable last{0, 0, ""};  // most often it is the same again
    if (last.begin <= address && address + bytes <= last.end) return;
    for (const SharedVariable& each : shared_variables()) {
      if (each.begin <= address && address + bytes <= each.end) {
        last = each;
        return;
      }
    }
  }
  fail_outside(region, address, action);
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

// Calls f(mark, address) for each grain of an access.
template <class F>
void for_each_grain(Region& region, uintptr_t address, size_t bytes, const F& f) {
  for (uintptr_t at = address / kGrain * kGrain; at < address + bytes; at += kGrain) f(region.mark(at), at);
}

void note_read(Region& region, uintptr_t address, size_t bytes) {
  check_bounds(region, address, bytes, "reads");
  const Use now = used_now(current_thread());
  for_each_grain(region, address, bytes, [&](Mark& mark, uintptr_t at) {
    require_written(mark, "reads", region, at);
    if (bytes < kGrain) return;
    require_no_clash(mark.written, " written", "reads", region, at);
    const Use before = mark.read;
    mark.read = now;
    if (!clashes(before, now.thread)) return;
    mark.read.thread = kSeveral;
    if (before.warp != now.warp) mark.read.warp = kSeveral;
  });
}

void note_write(Region& region, uintptr_t address, size_t bytes) {
  check_bounds(region, address, bytes, "writes");
  const Use now = used_now(current_thread());
  for_each_grain(region, address, bytes, [&](Mark& mark, uintptr_t at) {
    if (bytes >= kGrain) {
      require_no_clash(mark.written, " written", "writes", region, at);
      require_no_clash(mark.read, " read", "writes", region, at);
    }
    mark.written = now;
  });
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
  const auto first = reinterpret_cast<uintptr_t>(memory);
  dynamic.set(first, first + bytes, kDynamicGuardBytes);
}

void all_have_waited() { ++epoch; }
void warp_has_waited(int warp) { ++phases[warp]; }

void note_atomic(const void* pointer, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  // Plain accesses call nothing in this build: what they have written is not known.
  static_cast<void>(pointer);
  static_cast<void>(bytes);
#else
  in_shared(pointer, [&](Region& region, uintptr_t address) {
    check_bounds(region, address, bytes, "changes");
    for_each_grain(region, address, bytes, [&](Mark& mark, uintptr_t at) {
      require_written(mark, "changes", region, at);
      for (const Use* use : {&mark.written, &mark.read}) {
        if (use->thread != kAtomic) require_no_clash(*use, " used", "changes", region, at);
      }
      mark.written = mark.read = {epoch, 0, kAtomic, kSeveral};
    });
  });
#endif
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
