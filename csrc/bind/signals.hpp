// Ctrl-C, for loops that have given up the GIL.
#pragma once

#include <pybind11/pybind11.h>

namespace curvkern {

// Whether a Python signal handler has raised: then throw pybind11::error_already_set.
inline bool signalled() {
    const pybind11::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() != 0;
}

}  // namespace curvkern
