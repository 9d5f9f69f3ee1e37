// How a binding runs a loop: in place while holding the GIL when it is short, else without the
// GIL, on torch's threads, and ready for Ctrl-C.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "bind/signals.hpp"
#include "core/parallel.hpp"

namespace curvkern {

namespace py = pybind11;

// Elements a thread takes at a time, much work against the microsecond that starting the
// threads costs and little against the time between two polls for signals; each order of
// derivatives about doubles the work of one element. An eighth of it takes
// 5 to 25 us.
inline constexpr std::int64_t chunk_size(int order) {
    return std::int64_t{4096} >> order;
}

// body(begin, end) for [0, n) cut into chunks. Throws what a Python signal handler raised.
template <class Body>
void for_chunks(std::int64_t n, int order, Body body) {
    if (n == 0) return;
    const std::int64_t chunk = chunk_size(order);
    if (n <= chunk / 8) return body(std::int64_t{0}, n);
    bool finished;
    {
        const py::gil_scoped_release release;
        finished = parallel_chunks(n, chunk, signalled, body);
    }
    if (!finished) throw py::error_already_set();
}

}  // namespace curvkern
