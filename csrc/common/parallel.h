// Runs a function over chunks of a range, in parallel.
#pragma once

#include "common/numbers.h"

#include <algorithm>

namespace modfast {

// Calls f(begin, end) for each chunk of [0, count); only the last chunk may be shorter than `chunk`. The
// chunks do not depend on the number of threads.
template <class F>
void for_each_chunk(ParallelFor parallel_for, int64_t count, int64_t chunk, const F& f) {
  struct Context {
    const F& f;
    int64_t count, chunk;
  } context{f, count, chunk};
  parallel_for((count + chunk - 1) / chunk, 1,
               [](int64_t begin, int64_t end, void* given) {
                 const auto& loop = *static_cast<const Context*>(given);
                 for (int64_t i = begin; i < end; ++i) {
                   loop.f(i * loop.chunk, std::min(loop.count, (i + 1) * loop.chunk));
                 }
               },
               &context);
}

// Like parallel_for, for work that one thread finishes in less than a millisecond. PyTorch's loop ends when
// all of its threads have come, even if nothing is left to do; one that has to wait for a core, since other
// processes keep them busy, comes a scheduler's slice late, which is many times as long as the work. After
// such a wait the calling thread does this work alone for a number of calls, which grows while the waits go
// on.
void small_parallel_for(ParallelFor parallel_for, int64_t count, int64_t grain, LoopBody body, void* context);

// How many calls of small_parallel_for the calling threads will do alone.
int64_t calls_to_do_alone();

}  // namespace modfast
