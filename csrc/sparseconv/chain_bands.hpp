// A segment of a chain, band by band of the rows of its last output.
#pragma once

#include "sparseconv/chain.hpp"

namespace curvkern::sparseconv {

class Chain::Bands {
  public:
    // Rows [begin, end), in the memory of one thread.
    Bands(const Chain& chain, const Segment& segment, std::int64_t begin, std::int64_t end,
          char* memory, const Work& work);
    // Computes the next band; false when there is none.
    bool next();

  private:
    const Stage& stage(std::size_t i) const {
        return chain_.stages_[static_cast<std::size_t>(segment_.first) + i];
    }
    void keep(std::size_t i);
    void compute(std::size_t i);

    const Chain& chain_;
    const Segment& segment_;
    const Work& work_;
    std::int64_t end_;
    std::vector<Rows> rows_;  // of what each stage takes, then of the result
    // By stage: which row is the next one, and the end of those for this band.
    std::vector<std::int64_t> done_, until_;
    std::vector<char*> padded_;  // by stage, the scratch of all but products
    char* memory_;               // that of products
};

}  // namespace curvkern::sparseconv
