// Work cut into fixed chunks and shared among the threads of torch's own OpenMP runtime.
//
// The runtime is found in the process, not linked: torch wheels bring their own libgomp under a
// name that differs from wheel to wheel, and a second copy would mean a second pool of threads
// that torch.set_num_threads does not reach. Without torch in the process, in a forked child
// (where the pool's threads are gone and a region would hang), and inside another region, the
// chunks run one after the other on the calling thread.
#pragma once

#include <cstdint>

namespace curvkern {

// Asked by the calling thread at least every 100 ms as long as a chunk takes less than that;
// true ends the work early.
using InterruptCheck = bool (*)();

// How many threads parallel_chunks() would use now.
int thread_count();

// Path of the OpenMP runtime in use; empty when there is none. No std::string: sources that are
// compiled per instruction set include this header.
const char* openmp_runtime();

// Makes children of fork() run on one thread. Call it once, before the first fork.
void install_fork_handler();
bool in_forked_child();

namespace detail {
using Chunk = void (*)(void* body, std::int64_t begin, std::int64_t end);
bool run_chunks(std::int64_t n, std::int64_t chunk, InterruptCheck interrupted, Chunk run,
                void* body);
}  // namespace detail

// Calls body(begin, end) for [0, chunk), [chunk, 2 chunk), ... up to n, in any order and from
// several threads. The cuts depend on n and chunk only, never on the number of threads. Returns
// false when it was interrupted, with some chunks not done; what body throws, where memory
// ends, ends the work as well and is thrown to the caller.
template <class Body>
bool parallel_chunks(std::int64_t n, std::int64_t chunk, InterruptCheck interrupted,
                     Body body) {
    const detail::Chunk run = [](void* self, std::int64_t begin, std::int64_t end) {
        (*static_cast<Body*>(self))(begin, end);
    };
    return detail::run_chunks(n, chunk, interrupted, run, &body);
}

}  // namespace curvkern
