// A piece of scratch memory for each chunk of work that runs at the same time as others.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace curvkern::sparseconv {

class Workers {
  public:
    // `each` is a multiple of 64 bytes, as scratch is aligned to.
    Workers(void* scratch, std::int64_t count, std::int64_t each)
        : scratch_(static_cast<char*>(scratch)),
          count_(count),
          each_(each),
          taken_(std::make_unique<std::atomic<bool>[]>(static_cast<std::size_t>(count))) {}

    class Turn {
      public:
        explicit Turn(Workers& workers) : workers_(workers) {
            while (workers_.taken_[at_].exchange(true, std::memory_order_acquire)) {
                at_ = (at_ + 1) % static_cast<std::size_t>(workers_.count_);
            }
        }
        ~Turn() { workers_.taken_[at_].store(false, std::memory_order_release); }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;
        char* scratch() const {
            return workers_.scratch_ + static_cast<std::int64_t>(at_) * workers_.each_;
        }

      private:
        Workers& workers_;
        std::size_t at_ = 0;
    };

  private:
    char* scratch_;
    std::int64_t count_, each_;
    std::unique_ptr<std::atomic<bool>[]> taken_;
};

inline std::int64_t whole_lines(std::int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}
inline char* aligned(void* memory) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    return static_cast<char*>(memory) + ((64 - address % 64) % 64);
}

}  // namespace curvkern::sparseconv
