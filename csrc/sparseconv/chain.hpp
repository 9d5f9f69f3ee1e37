// Convolutions one after the other on an image, as one call.
//
// What lies between two layers of 112 x 112 pixels does not fit into L2 and would come back
// from L3 or memory. Such stages form a segment, which runs band by band of the rows of its
// last output: each stage computes the rows that the next one needs for the band, and the rows
// that its next band needs again (kernel - stride of them) move to the head of the buffer.
// Elsewhere a stage runs as a whole, from one part of a workspace to another, so that no page
// is new.
//
// The last stages, whose images are small, may run for a group of images at once, which then
// lie interleaved, (channels, height, width, images): a product takes them for one image of so
// many more pixels, and a depthwise convolution fills its registers with a pixel of each.
//
// Each stage calls the loops of its layer for all rows or for some, which give the same bits:
// those of a chain do not depend on bands, groups or threads.
#pragma once

#include <vector>

#include "sparseconv/depthwise.hpp"
#include "sparseconv/first.hpp"
#include "sparseconv/gate.hpp"
#include "sparseconv/product.hpp"

namespace curvkern::sparseconv {

struct Extent {
    std::int64_t channels, height, width;
};

// Numbers of tensors: 0 is what the chain is called with, i + 1 what stage i computes.
struct Stage {
    enum class Kind { pointwise, depthwise, first } kind;
    int input, residual;  // the latter -1 where nothing is added
    Product product;      // pointwise: plan, value, bias, activation
    Depthwise filters;    // all but where x and y lie, and which rows
    FirstConv first;
    bool gated = false;  // a product of channels that are scaled, of float32
    Gate gate;
    Extent out;
    // Row i of the result takes rows [i step - top, i step - top + reach) of the input.
    std::int64_t reach = 1, step = 1, top = 0;
};

// Bytes that one thread works in for a stage.
std::int64_t stage_scratch(const Stage& stage);

// In bytes: a tensor between two stages is not kept as a whole where it takes more than
// `whole`; the buffers of a band take no more than `band`, unless one row does.
struct Limits {
    std::int64_t whole, band;
};

// Stages from `first` on, all of which can, take so many images at once.
struct Group {
    std::int64_t first, images;
};
inline bool takes_group(const Stage& stage) {
    if (stage.kind == Stage::Kind::depthwise) return is_small(stage.filters);
    return stage.kind == Stage::Kind::pointwise && !stage.gated;
}

class Chain {
  public:
    // For `threads` on one image, or on a group of images each where a batch has several.
    Chain(std::vector<Stage> stages, Extent input, Storage storage, std::int64_t batch,
          int threads, Limits limits, Group group);
    // Packed weights are aligned within their memory, which a copy's would not be.
    Chain(const Chain&) = delete;
    Chain& operator=(const Chain&) = delete;

    Extent input() const { return extent_[0]; }
    Extent output() const { return extent_.back(); }
    std::int64_t batch() const { return batch_; }
    Storage storage() const { return storage_; }
    std::int64_t workspace() const { return lanes_ * lane_bytes_ + 64; }
    // By stage: the number of the segment that it belongs to, and the rows in a band of it,
    // 0 where it runs as a whole.
    std::vector<std::pair<int, std::int64_t>> segments() const;
    // False when interrupted.
    bool run(const void* x, void* y, void* workspace, InterruptCheck interrupted) const;

  private:
    struct Segment {
        std::int64_t first, last;  // stages [first, last)
        std::int64_t rows;         // of the last output in a band; 0: a stage as a whole
    };
    // A tensor, or some rows of it: row `row` is the first, channels are `plane` elements
    // apart.
    struct Rows {
        char* data;
        std::int64_t row, plane;
    };
    struct Poll;
    class Bands;
    // What is worked on: an image, the `image`th of its group, or all images of a group.
    struct Work {
        const char* x;
        char *y, *lane;
        std::int64_t image;
        Poll& poll;
    };

    void cut(Limits limits);
    void place_tensors();
    void place_scratch();
    std::int64_t capacity(const Segment& segment, std::int64_t rows,
                          std::vector<std::int64_t>& held) const;
    std::int64_t tensor_elements(std::int64_t tensor) const;
    std::int64_t tensor_bytes(std::int64_t tensor) const;
    std::int64_t row_bytes(std::int64_t tensor) const;
    std::int64_t first_row(const Stage& stage, std::int64_t row) const;
    std::int64_t end_row(const Stage& stage, std::int64_t end) const;
    bool grouped(const Segment& segment) const { return segment.first >= group_.first; }

    Rows whole(std::int64_t tensor, const Work& work) const;
    Product product(const Stage& stage, std::int64_t begin, std::int64_t end, const Rows& from,
                    const Rows& beside, const Rows& to, const char* lane) const;
    // Makes the values of a gated product, which stay in the lane until its segment is done.
    bool open_gate(std::int64_t stage, const Work& work) const;
    // A convolution with where its images and its results lie.
    template <class Convolution>
    static Convolution placed(Convolution c, const Rows& from, const Rows& to) {
        c.x = from.data;
        c.x_row = from.row;
        c.x_plane = from.plane;
        c.y = to.data;
        c.y_row = to.row;
        c.y_plane = to.plane;
        return c;
    }
    bool run_group(const Work& work, std::int64_t images) const;
    bool run_image(const Work& work) const;
    bool run_whole(const Segment& segment, const Work& work) const;
    // What the stages of a group take of those before them, and what they make of it.
    void gather(const Work& work, std::int64_t images) const;
    void run_interleaved(std::int64_t stage, char* lane, std::int64_t images) const;
    void scatter(const Work& work, std::int64_t images) const;

    std::vector<Stage> stages_;
    std::vector<std::vector<char>> packed_;  // by stage, of first convolutions
    std::vector<std::vector<std::int32_t>>
        columns_;                 // by stage, of the values of gated products
    std::vector<Extent> extent_;  // by tensor
    Storage storage_;
    Group group_;
    std::int64_t batch_, lanes_, threads_;  // groups at a time, and threads on each
    std::vector<Segment> segments_;
    // By tensor, -1 where it is not: where it lies in a lane, that of an image or, `slot_`
    // bytes apart, those of a group; and where it lies interleaved.
    std::vector<std::int64_t> offset_, slot_, interleaved_;
    std::int64_t gate_ = 0, scratch_ = 0, band_ = 0, band_bytes_ = 0, lane_bytes_ = 0,
                 scratch_bytes_ = 0;
};

}  // namespace curvkern::sparseconv
