// The CUDA loops of the projection onto the simplex: a block for each row, a warp where rows
// are short.
//
// Sums go lane by lane and warp by warp in a fixed order, so results are the same from run to
// run.
#include "core/dd.hpp"
#include "sinkhorn/sparsemax.hpp"
#include "sinkhorn/sparsemax_cuda.hpp"

namespace curvkern::sparsemax {
namespace {

constexpr int warp = 32, most_threads = 512;
constexpr double infinite = __builtin_huge_val();

// One row, seen by the threads of a block: thread i has entries i, i + threads, ...
template <class T>
struct Row {
    const T* z;
    std::int64_t n;

    template <class Body>
    __device__ void for_each(Body body) const {
        for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            body(static_cast<double>(z[i]), i);
        }
    }
};

// Combines one value of each thread; all threads get the result.
template <class Combine>
__device__ double reduce(double x, Combine combine) {
    __shared__ double of_warp[most_threads / warp];
    for (int offset = warp / 2; offset > 0; offset /= 2) {
        x = combine(x, __shfl_xor_sync(0xffffffffu, x, offset));
    }
    if (blockDim.x == warp) return x;
    __syncthreads();  // the last call's readers are done
    if (threadIdx.x % warp == 0) of_warp[threadIdx.x / warp] = x;
    __syncthreads();
    x = of_warp[0];
    for (unsigned w = 1; w < blockDim.x / warp; ++w) x = combine(x, of_warp[w]);
    return x;
}

struct Add {
    __device__ double operator()(double x, double y) const { return x + y; }
};
struct Largest {
    __device__ double operator()(double x, double y) const { return x < y ? y : x; }
};
struct Smallest {
    __device__ double operator()(double x, double y) const { return y < x ? y : x; }
};

// The positive parts of d - t; each thread keeps the rounding errors of its sum.
template <class T>
__device__ Positive positive_parts(const Row<T>& row, double top, double t) {
    Pair<double> sum{0, 0};
    double count = 0;
    row.for_each([&](double z, std::int64_t) {
        const double rise = (z - top) - t;
        if (!(rise > 0)) return;
        const Pair<double> next = two_sum(sum.hi, rise);
        sum = {next.hi, sum.lo + next.lo};
        count += 1;
    });
    return {reduce(sum.hi, Add{}), reduce(sum.lo, Add{}), reduce(count, Add{})};
}

// See keep_largest in sparsemax_threshold.hpp.
template <class T>
__device__ void keep_largest(const Row<T>& row, double mass, std::int64_t k, Threshold& h) {
    const double wanted = static_cast<double>(k);
    double high = h.top, above_high = 0, low = nextafter(h.top - mass, -infinite);
    if (low == -infinite) low = -1.7976931348623157e308;
    for (;;) {
        double pivot = low / 2 + high / 2;
        if (!(pivot > low && pivot < high)) pivot = low;
        double mine = 0, below = -infinite, next = infinite;
        row.for_each([&](double z, std::int64_t) {
            if (z > pivot) {
                mine += 1;
                next = z < next ? z : next;
            } else {
                below = z > below ? z : below;
            }
        });
        const double above = reduce(mine, Add{});
        below = reduce(below, Largest{});
        next = reduce(next, Smallest{});
        if (above == wanted) {
            h.cut = pivot;
            break;
        }
        if (above < wanted) {
            high = below;
            above_high = above;
        } else if (next == high) {
            h.cut = high;
            h.ties = k - static_cast<std::int64_t>(above_high);
            break;
        } else {
            low = pivot;
        }
    }
    const auto rise = [&](double t) {
        double mine = 0;
        row.for_each([&](double z, std::int64_t) {
            if (z > h.cut) mine += (z - h.top) - t;
        });
        const double tied = static_cast<double>(h.ties);
        const double tie = h.ties > 0 ? tied * ((h.cut - h.top) - t) : 0;
        return Positive{reduce(mine, Add{}) + tie, 0, wanted};
    };
    h.t = correction(rise(0), mass);
    h.low = correction(rise(h.t), mass);
}

template <class T>
__device__ Threshold find_threshold(const Row<T>& row, double top, double mass,
                                    std::int64_t k) {
    Threshold h{top};
    h.t = -mass;
    Positive at = positive_parts(row, top, h.t);
    for (;;) {
        const double before = at.count;
        h.t += correction(at, mass);
        at = positive_parts(row, top, h.t);
        if (!(at.count < before)) break;
    }
    if (at.count > static_cast<double>(k)) {
        keep_largest(row, mass, k, h);
    } else {
        h.low = correction(at, mass);
    }
    return h;
}

// The first `ties` entries equal to `tied` get `share`: one warp, in the order of the row.
template <class T>
__device__ void write_ties(const Row<T>& row, double tied, std::int64_t ties, T share, T* p) {
    __syncthreads();
    if (threadIdx.x >= warp) return;
    for (std::int64_t begin = 0; begin < row.n && ties > 0; begin += warp) {
        const std::int64_t i = begin + threadIdx.x;
        const bool equal = i < row.n && static_cast<double>(row.z[i]) == tied;
        const unsigned equals = __ballot_sync(0xffffffffu, equal);
        const int before = __popc(equals & ((1u << threadIdx.x) - 1));
        if (equal && before < ties) p[i] = share;
        ties -= __popc(equals);
    }
}

template <class T>
__device__ double write_row(const Row<T>& row, const Threshold& h, T* p) {
    double mine = 0;
    row.for_each([&](double z, std::int64_t i) {
        const double y = ((z - h.top) - h.t) - h.low;
        const bool kept = z > h.cut && y > 0;
        p[i] = kept ? static_cast<T>(y) : T{0};
        mine += kept;
    });
    const double count = reduce(mine, Add{});
    if (h.ties > 0) {
        const double y = ((h.cut - h.top) - h.t) - h.low;
        write_ties(row, h.cut, h.ties, static_cast<T>(y > 0 ? y : 0), p);
    }
    return count + static_cast<double>(h.ties);
}

template <class T>
__device__ double share_infinite(const Row<T>& row, double mass, std::int64_t k, T* p) {
    double mine = 0;
    row.for_each([&](double z, std::int64_t i) {
        mine += z == infinite;
        p[i] = 0;
    });
    double count = reduce(mine, Add{});
    if (count > static_cast<double>(k)) count = static_cast<double>(k);
    write_ties(row, infinite, static_cast<std::int64_t>(count), static_cast<T>(mass / count),
               p);
    return count;
}

template <class T>
__global__ void __launch_bounds__(most_threads)
    project_kernel(const T* z, const double* mass, std::int64_t k, T* p, double* tau,
                   double* support, std::int64_t rows, std::int64_t n) {
    for (std::int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
        const Row<T> row{z + r * n, n};
        double top = -infinite, odd = 0;
        row.for_each([&](double x, std::int64_t) {
            top = x > top ? x : top;
            odd = x != x ? 1 : odd;
        });
        top = reduce(top, Largest{});
        odd = reduce(odd, Add{});
        double found_tau = top, found_support = 0;
        T* out = p + r * n;
        switch (kind_of(top, odd > 0, mass[r])) {
            case Kind::ordinary: {
                const Threshold h = find_threshold(row, top, mass[r], k);
                found_tau = h.tau();
                found_support = write_row(row, h, out);
                break;
            }
            case Kind::infinite:
                found_support = share_infinite(row, mass[r], k, out);
                break;
            case Kind::empty:
                row.for_each([&](double, std::int64_t i) { out[i] = 0; });
                break;
            case Kind::undefined:
                found_tau = __builtin_nan("");
                row.for_each(
                    [&](double, std::int64_t i) { out[i] = static_cast<T>(found_tau); });
        }
        if (threadIdx.x == 0) {
            tau[r] = found_tau;
            support[r] = found_support;
        }
        __syncthreads();
    }
}

template <class T>
__global__ void __launch_bounds__(most_threads)
    jacobian_kernel(const T* p, const T* grad, T* out, std::int64_t rows, std::int64_t n) {
    for (std::int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
        const Row<T> row{p + r * n, n};
        const T* slope = grad + r * n;
        double mine = 0, members = 0;
        row.for_each([&](double x, std::int64_t i) {
            if (!(x > 0)) return;
            mine += static_cast<double>(slope[i]);
            members += 1;
        });
        const double sum = reduce(mine, Add{}), count = reduce(members, Add{});
        const double mean = count > 0 ? sum / count : 0;
        row.for_each([&](double x, std::int64_t i) {
            const double y = x > 0 ? static_cast<double>(slope[i]) - mean : 0;
            out[r * n + i] = static_cast<T>(x >= 0 ? y : x);  // NaN, where the row is
        });
    }
}

struct Grid {
    unsigned blocks, threads;
};

Grid grid_for(std::int64_t rows, std::int64_t n) {
    unsigned threads = warp;
    while (threads < most_threads && std::int64_t{8} * threads < n) threads *= 2;
    constexpr std::int64_t most = 1 << 20;
    return {static_cast<unsigned>(rows < most ? rows : most), threads};
}

}  // namespace

template <class T>
cudaError_t launch_project(const T* z, const double* mass, std::int64_t k, T* p, double* tau,
                           double* support, std::int64_t rows, std::int64_t n,
                           cudaStream_t stream) {
    const Grid grid = grid_for(rows, n);
    project_kernel<T>
        <<<grid.blocks, grid.threads, 0, stream>>>(z, mass, k, p, tau, support, rows, n);
    return cudaGetLastError();
}

template <class T>
cudaError_t launch_jacobian(const T* p, const T* grad, T* out, std::int64_t rows,
                            std::int64_t n, cudaStream_t stream) {
    const Grid grid = grid_for(rows, n);
    jacobian_kernel<T><<<grid.blocks, grid.threads, 0, stream>>>(p, grad, out, rows, n);
    return cudaGetLastError();
}

template cudaError_t launch_project(const double*, const double*, std::int64_t, double*,
                                    double*, double*, std::int64_t, std::int64_t, cudaStream_t);
template cudaError_t launch_project(const float*, const double*, std::int64_t, float*, double*,
                                    double*, std::int64_t, std::int64_t, cudaStream_t);
template cudaError_t launch_jacobian(const double*, const double*, double*, std::int64_t,
                                     std::int64_t, cudaStream_t);
template cudaError_t launch_jacobian(const float*, const float*, float*, std::int64_t,
                                     std::int64_t, cudaStream_t);

}  // namespace curvkern::sparsemax
