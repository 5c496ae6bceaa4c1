#include "common/kept_memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#elif defined(_WIN32)
#include <malloc.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace modfast {
namespace {

constexpr size_t kHugePage = 2 << 20;

// Windows has no aligned memory that free() takes.
void* aligned_block(size_t bytes) {
#if defined(_WIN32)
  return _aligned_malloc(bytes, kHugePage);
#else
  return std::aligned_alloc(kHugePage, bytes);
#endif
}

void free_block(void* block) {
#if defined(_WIN32)
  _aligned_free(block);
#else
  std::free(block);
#endif
}

struct Kept {
  std::mutex mutex;
  std::vector<std::pair<size_t, void*>> blocks;  // oldest first
  size_t bytes = 0;
  size_t limit = 0;

  // Called with the mutex held.
  void trim() {
    while (bytes > limit) {
      bytes -= blocks.front().first;
      free_block(blocks.front().second);
      blocks.erase(blocks.begin());
    }
  }
};

Kept& kept();

// A forked process has one thread. Were the mutex held by another one at the time, nobody would ever unlock
// it.
Kept* make_kept() {
#if !defined(_WIN32)
  const auto lock = [] { kept().mutex.lock(); };
  const auto unlock = [] { kept().mutex.unlock(); };
  if (pthread_atfork(lock, unlock, unlock) != 0) throw std::bad_alloc();  // its only error
#endif
  return new Kept;
}

// Never destroyed: a tensor may be freed after static objects are destroyed.
Kept& kept() {
  static Kept* const only = make_kept();
  return *only;
}

}  // namespace

void keep_at_most(size_t bytes) {
  const std::lock_guard<std::mutex> lock(kept().mutex);
  kept().limit = bytes;
  kept().trim();
}

void* take_block(size_t bytes) {
  {
    const std::lock_guard<std::mutex> lock(kept().mutex);
    auto& blocks = kept().blocks;
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (blocks[i].first != bytes) continue;
      void* block = blocks[i].second;
      blocks.erase(blocks.begin() + i);
      kept().bytes -= bytes;
      return block;
    }
  }
  const size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* block = aligned_block(whole);
  if (block == nullptr) throw std::bad_alloc();
  prefer_large_pages(block, whole);
  return block;
}

void prefer_large_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  // Only whole pages: from the first multiple of their size to the last.
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

void give_block(void* block, size_t bytes) noexcept {
  try {
    const std::lock_guard<std::mutex> lock(kept().mutex);
    kept().blocks.emplace_back(bytes, block);
    kept().bytes += bytes;
    kept().trim();
  } catch (...) {  // there is no memory to keep it in the list
    free_block(block);
  }
}

}  // namespace modfast
