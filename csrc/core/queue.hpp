// Where kernels run. A kernel is an object that is copied to the device, with
//
//     void operator()(Block& block, std::int64_t id) const;     // the work of block `id`
//
// and a queue runs so many blocks of it, one kernel after the other. HostQueue does it at once,
// on the calling thread; CudaQueue (queue_cuda.hpp) hands it to a stream.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "block.hpp"

namespace curvkern {

struct Place {
    int device;
    std::uintptr_t stream;  // its address, as torch hands it over
};

#if !defined(__CUDACC__)
class HostQueue {
  public:
    // An odd stream runs blocks, and the threads of each up to its first barrier, backwards:
    // what that changes is a race.
    HostQueue(const Place& place, const char*) : backwards_(place.stream % 2 != 0) {}

    // Shared memory of a block, in float64 numbers; the least of today's large cards.
    std::int64_t shared_limit() const { return 227 * 1024 / 8; }

    template <class Kernel>
    void run(const Kernel& kernel, std::int64_t blocks, int threads, std::int64_t shared = 0) {
        for (std::int64_t id = 0; id < blocks; ++id) {
            // What another block has left there is nothing to rely on.
            std::vector<double> memory(static_cast<std::size_t>(shared), __builtin_nan(""));
            Block block(threads, memory.data(), backwards_);
            kernel(block, backwards_ ? blocks - 1 - id : id);
        }
    }

    bool is_idle() const { return true; }

    // Copies what all kernels so far have left.
    template <class T>
    void read(T* target, const T* source, std::int64_t count) {
        std::copy_n(source, count, target);
    }

    // Before all kernels to come; `source` may go when it returns.
    template <class T>
    void write(T* target, const T* source, std::int64_t count) {
        std::copy_n(source, count, target);
    }

  private:
    bool backwards_;
};
#endif

}  // namespace curvkern
