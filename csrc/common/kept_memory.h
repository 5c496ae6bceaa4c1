// Memory for gradients that are allocated in every step of a training loop.
//
// A large new block of the operating system is cleared and mapped page by page when it is first written,
// which takes several times as long as writing it; and malloc returns large blocks to the system at once. So
// freed blocks are kept for the next step, at most as much as the last step used.
#pragma once

#include <cstddef>

namespace modfast {

// Smaller blocks come from malloc, which keeps them itself.
constexpr size_t kKeptFrom = 1 << 20;

// Sets how many bytes may be kept: the total of the blocks taken next. Frees kept blocks beyond that.
void keep_at_most(size_t bytes);

// Returns a block of memory, aligned for any use; throws std::bad_alloc. Any thread may give it back, and
// PyTorch does so, which is why giving throws nothing.
void* take_block(size_t bytes);
void give_block(void* block, size_t bytes) noexcept;

// Asks the operating system for large pages for memory that has not been written yet: these cause fewer page
// faults and speed up random access. Without them, the memory has ordinary pages.
void prefer_large_pages(void* memory, size_t bytes);

}  // namespace modfast
