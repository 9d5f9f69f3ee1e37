// Room for float64 numbers from a cache line on: a register never lies in two.
#pragma once

#include <cstdint>
#include <vector>

namespace curvkern::mfac {

class Numbers {
  public:
    Numbers() = default;
    explicit Numbers(std::int64_t size) { resize(size); }  // zeros

    void resize(std::int64_t size) { lines_.resize(static_cast<std::size_t>(size / 8 + 1)); }
    double* data() { return lines_.data()->number; }
    const double* data() const { return lines_.data()->number; }

  private:
    struct alignas(64) Line {
        double number[8];
    };
    std::vector<Line> lines_;
};

}  // namespace curvkern::mfac
