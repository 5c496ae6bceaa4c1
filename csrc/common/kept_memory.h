// Memory for gradients that are made anew in every step of a training loop.
//
// A large block that comes fresh from the operating system is cleared and mapped page by page as it is first
// written, which takes several times as long as writing it; and malloc gives large blocks back at once. So
// what is freed is kept for the next step: at most as much as the last step asked for.
#pragma once

#include <cstddef>

namespace modfast {

// Smaller blocks are malloc's own business: it keeps them.
constexpr size_t kKeptFrom = 1 << 20;

// Tells how much the blocks taken next are in all; what is kept beyond that is freed.
void keep_at_most(size_t bytes);

// A block of memory, aligned for any use; throws std::bad_alloc. Any thread may give it back.
void* take_block(size_t bytes);
void give_block(void* block, size_t bytes);

// Asks for memory that has not been touched yet to come in large pages, which take fewer faults and are found
// faster from anywhere. Where they are not to be had, ordinary ones do.
void prefer_large_pages(void* memory, size_t bytes);

}  // namespace modfast
