// How the Sinkhorn method runs, on the CPU and on a GPU.
#pragma once

#include <cstdint>
#include <functional>

#include "core/parallel.hpp"

namespace curvkern::sinkhorn {

struct Options {
    std::int64_t max_iter;
    double tol;
    std::int64_t check_every;
    bool translate;  // unbalanced: translation-invariant updates
    bool anneal;     // start from a large eps where the wanted one is small
    bool symmetric;  // from a measure to itself: f = g, and averaged updates
};

struct Hooks {
    InterruptCheck interrupted;  // asked at least every 100 ms
    // After each check, with the largest error; false ends the solve.
    std::function<bool(std::int64_t iteration, double largest)> checked;
};

}  // namespace curvkern::sinkhorn
