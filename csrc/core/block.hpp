// A thread block as an object, so that one source of a kernel runs on the device and, in a
// test, thread after thread on the host.
//
//     Block::Own<Few<4>> part(block);           // registers of every thread
//     block.each([&](int thread) { ... });      // all threads, then a barrier
//     block.alone([&](int thread) { ... });     // no barrier: for a thread's own data
//     const Few<4> total = block.sum(part);     // the same in all threads; barriers as well
//     block.add_lanes<8>(part);                 // among 8 neighbours: no barrier
//     const double count = block.scan(before);  // sums over earlier threads; barriers as well
//
// Between two barriers a thread may read what others have written before the first of them, and
// nothing else. The host runs the threads forwards and backwards in turn, which shows a body
// that breaks the rule. A body must come to each barrier in all threads of a block: what
// decides about it has to be the same in all of them, and to stay until all have read it.
#pragma once

#include "hd.hpp"
#if !defined(__CUDACC__)
#include <vector>
#endif

// Before a loop over what a thread holds in registers: the device needs to know the indices
// when it compiles, and the host has none to lose.
#if defined(__CUDACC__)
#define CURVKERN_IN_REGISTERS CURVKERN_UNROLL
#else
#define CURVKERN_IN_REGISTERS
#endif

namespace curvkern {
CURVKERN_PER_ISA {

inline constexpr int warp_size = 32, most_threads = 512;

// N numbers that stay in registers: indices have to be known when compiled.
template <int N>
struct Few {
    double value[N] = {};
    CURVKERN_HD double& operator[](int i) { return value[i]; }
    CURVKERN_HD double operator[](int i) const { return value[i]; }
};

struct Add {
    CURVKERN_HD double operator()(double x, double y) const { return x + y; }
};
struct Largest {  // of numbers: a NaN is passed over where it comes second
    CURVKERN_HD double operator()(double x, double y) const { return y > x ? y : x; }
};

#if defined(__CUDACC__)

class Block {
  public:
    template <class T>
    class Own {
      public:
        __device__ explicit Own(const Block&, T start = {}) : value_(start) {}
        __device__ __forceinline__ T& operator()(int) { return value_; }

      private:
        T value_;
    };

    __device__ explicit Block(double* shared) : shared_(shared) {}
    __device__ __forceinline__ int threads() const { return static_cast<int>(blockDim.x); }
    __device__ __forceinline__ double* shared() const { return shared_; }

    template <class Body>
    __device__ __forceinline__ void alone(Body body) {
        body(static_cast<int>(threadIdx.x));
    }
    template <class Body>
    __device__ __forceinline__ void each(Body body) {
        alone(body);
        __syncthreads();
    }

    // Lane by lane, then warp by warp: always in the same order.
    template <int N, class Combine>
    __device__ __forceinline__ Few<N> reduce(Own<Few<N>>& own, Combine combine) {
        __shared__ double of_warp[most_threads / warp_size][N];
        Few<N> x = own(0);
        for (int offset = warp_size / 2; offset > 0; offset /= 2) {
            CURVKERN_IN_REGISTERS
            for (int k = 0; k < N; ++k) {
                x[k] = combine(x[k], __shfl_xor_sync(0xffffffffu, x[k], offset));
            }
        }
        if (threadIdx.x % warp_size == 0) {
            CURVKERN_IN_REGISTERS
            for (int k = 0; k < N; ++k) of_warp[threadIdx.x / warp_size][k] = x[k];
        }
        __syncthreads();
        CURVKERN_IN_REGISTERS
        for (int k = 0; k < N; ++k) {
            x[k] = of_warp[0][k];
            for (unsigned w = 1; w < blockDim.x / warp_size; ++w) {
                x[k] = combine(x[k], of_warp[w][k]);
            }
        }
        __syncthreads();  // before the next call writes there
        return x;
    }

    // own becomes its sum over groups of L neighbouring threads, the same in all of a group.
    template <int L, int N>
    __device__ __forceinline__ void add_lanes(Own<Few<N>>& own) {
        Few<N>& x = own(0);
        for (int offset = L / 2; offset > 0; offset /= 2) {
            CURVKERN_IN_REGISTERS
            for (int k = 0; k < N; ++k) x[k] += __shfl_xor_sync(0xffffffffu, x[k], offset);
        }
    }

    // own, of whole numbers, becomes its sum over the threads before; returns that over all.
    __device__ __forceinline__ double scan(Own<double>& own) {
        __shared__ double of_warp[most_threads / warp_size];
        const unsigned lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
        const double mine = own(0);
        double up_to = mine;
        for (unsigned offset = 1; offset < warp_size; offset *= 2) {
            const double earlier = __shfl_up_sync(0xffffffffu, up_to, offset);
            if (lane >= offset) up_to += earlier;
        }
        if (lane == warp_size - 1) of_warp[warp] = up_to;
        __syncthreads();
        double before = 0, total = 0;
        for (unsigned w = 0; w < blockDim.x / warp_size; ++w) {
            if (w < warp) before += of_warp[w];
            total += of_warp[w];
        }
        __syncthreads();  // before the next call writes there
        own(0) = before + (up_to - mine);
        return total;
    }

#else

class Block {
  public:
    template <class T>
    class Own {
      public:
        explicit Own(const Block& block, T start = {}) : value_(block.threads(), start) {}
        T& operator()(int thread) { return value_[thread]; }

      private:
        std::vector<T> value_;
    };

    Block(int threads, double* shared, bool backwards)
        : threads_(threads), backwards_(backwards), shared_(shared) {}
    int threads() const { return threads_; }
    double* shared() const { return shared_; }

    template <class Body>
    void alone(Body body) {
        for (int t = 0; t < threads_; ++t) body(backwards_ ? threads_ - 1 - t : t);
    }
    template <class Body>
    void each(Body body) {
        alone(body);
        backwards_ = !backwards_;
    }

    template <int N, class Combine>
    Few<N> reduce(Own<Few<N>>& own, Combine combine) {
        Few<N> total = own(0);
        for (int t = 1; t < threads_; ++t) {
            for (int k = 0; k < N; ++k) total[k] = combine(total[k], own(t)[k]);
        }
        backwards_ = !backwards_;
        return total;
    }

    template <int L, int N>
    void add_lanes(Own<Few<N>>& own) {
        for (int first = 0; first < threads_; first += L) {
            Few<N> total = own(first);
            for (int t = first + 1; t < first + L; ++t) {
                for (int k = 0; k < N; ++k) total[k] += own(t)[k];
            }
            for (int t = first; t < first + L; ++t) own(t) = total;
        }
    }

    double scan(Own<double>& own) {
        double total = 0;
        for (int t = 0; t < threads_; ++t) {
            const double mine = own(t);
            own(t) = total;
            total += mine;
        }
        backwards_ = !backwards_;
        return total;
    }

#endif

    template <int N>
    CURVKERN_HD Few<N> sum(Own<Few<N>>& own) {
        return reduce(own, Add{});
    }
    template <int N>
    CURVKERN_HD Few<N> most(Own<Few<N>>& own) {
        return reduce(own, Largest{});
    }
    // What all threads have read so far may be written from here on.
    CURVKERN_HD void barrier() {
        each([](int) {});
    }
    // Does condition(thread) hold for any?
    template <class Condition>
    CURVKERN_HD bool any(Condition condition) {
        Own<Few<1>> holds(*this);
        alone([&](int thread) { holds(thread)[0] = condition(thread) ? 1 : 0; });
        return most(holds)[0] > 0;
    }

  private:
#if !defined(__CUDACC__)
    int threads_;
    bool backwards_;
#endif
    double* shared_;
};

}  // namespace isa
}  // namespace curvkern
