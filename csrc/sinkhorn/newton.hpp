// Entropic optimal transport at any eps: sparse Newton steps on the dual, along a path of
// falling eps.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "core/parallel.hpp"

namespace curvkern::newton {

// Asks the interpreter for signals now and then, on the thread that created it; the others
// see what it heard.
class Interrupt {
  public:
    explicit Interrupt(InterruptCheck check) : check_(check) {}
    bool stop() {  // true from the first interruption on
        if (stopped_.load(std::memory_order_relaxed)) return true;
        if (check_ == nullptr || std::this_thread::get_id() != owner_) return false;
        const auto now = std::chrono::steady_clock::now();
        if (now - last_ < std::chrono::milliseconds(50)) return false;
        last_ = now;
        if (check_()) set();
        return stopped_.load(std::memory_order_relaxed);
    }
    InterruptCheck check() const { return check_; }
    void set() { stopped_.store(true, std::memory_order_relaxed); }

  private:
    InterruptCheck check_;
    std::thread::id owner_ = std::this_thread::get_id();
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
    std::atomic<bool> stopped_{false};
};

// P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps); KL penalties rho on the marginals, +inf: hard.
struct DenseProblem {
    std::int64_t n, m;
    const double* a;   // (n,) >= 0
    const double* b;   // (m,) >= 0
    const void* cost;  // (n, m), +inf legal
    bool cost_is_float32;
    double eps, rho_a, rho_b;
};

struct NewtonOptions {
    double tol;             // on the L1 error of the marginals over the total mass
    std::int64_t max_iter;  // passes over the cost matrix
    bool warm_start;        // f and g hold a start
};

struct NewtonResult {
    double error;  // recomputed from the final f and g
    std::int64_t iterations;
    bool converged;
};

// f (n,) and g (m,): start and result. trace (trace_size,) receives the error after each pass.
// False when it was interrupted.
bool solve_newton(const DenseProblem& problem, const NewtonOptions& options, double* f,
                  double* g, double* trace, std::int64_t trace_size, NewtonResult& result,
                  Interrupt& interrupt);

// Problems of one shape, one after the other in memory.
struct DenseBatch {
    std::int64_t size, n, m;
    const double *a, *b;  // (size, n), (size, m)
    const void* cost;     // (size, n, m)
    bool cost_is_float32;
    const double *eps, *rho;  // (size,), (size, 2)
    double *f, *g;            // (size, n), (size, m): start and result
    double* result;           // (size, 3): error, iterations, whether converged
    double* trace;            // (size, trace_size): the error after each iteration
    std::int64_t trace_size;
};

// Solves all of them. Potentials at points without mass are the soft c-transforms; with hard
// marginals sum a f / sum a = sum b g / sum b. False when interrupted; throws std::bad_alloc.
bool solve_newton_batch(const DenseBatch& batch, const NewtonOptions& options,
                        InterruptCheck check);

}  // namespace curvkern::newton
