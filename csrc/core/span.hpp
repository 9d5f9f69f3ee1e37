// Typed views of memory that somebody else owns. Knows nothing of Python or torch.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace curvkern {

// a * b for sizes and offsets; throws std::length_error where int64 would overflow.
inline std::int64_t checked_multiply(std::int64_t a, std::int64_t b) {
    std::int64_t product;
    if (__builtin_mul_overflow(a, b, &product)) {
        throw std::length_error("too large: " + std::to_string(a) + " x " + std::to_string(b) +
                                " elements");
    }
    return product;
}

// size elements, one after the other. T is const where the elements are only read.
template <class T>
struct View {
    T* data;
    std::int64_t size;
};

}  // namespace curvkern
