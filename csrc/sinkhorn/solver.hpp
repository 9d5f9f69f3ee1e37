// The Sinkhorn method on a batch: all iterations of all problems.
#pragma once

#include <cstdint>
#include <vector>

#include "sinkhorn/options.hpp"
#include "sinkhorn/problem.hpp"

namespace curvkern::sinkhorn {

std::int64_t solver_workspace_size(const Batch& batch);

class Solver {
  public:
    Solver(const Batch& batch, const Options& options, const Hooks& hooks, double* workspace);

    // Potentials to start from, (batch, n) and (batch, m).
    void start_from(const double* f, const double* g);

    // Returns false when a hook ended it.
    bool run();

    // (batch, n), (batch, m); info (batch, 3): error, iterations, converged (0 or 1)
    void write(double* f, double* g, double* info) const;
    void write_errors(double* errors) const;

  private:
    // A check also measures the error; it is exact if it comes from the costs in float64.
    enum class Sweep { plain, check, exact_check };

    struct State {
        Problem problem;
        std::int64_t index, iterations = 0;
        double eps, target;   // at present, and at the end of annealing
        int sweeps_left = 0;  // at this eps
        double error = 0;     // by the last check
        Arithmetic arithmetic = Arithmetic::float64;
        bool stored = false;  // entries, in this arithmetic, for this eps
        bool done = false, converged = false;
    };
    static bool is_float32(const State& state) {
        return state.arithmetic == Arithmetic::float32;
    }

    bool all_sweep(std::int64_t sweeps, bool check);
    template <class Run>
    bool sweep(State& state, bool is_check, const Run& run);
    template <class Run>
    bool check(State& state, const Run& run);
    template <class Run>
    bool sweep_once(State& state, Sweep kind, const Run& run);
    Problem prepare(State& state, Arithmetic arithmetic, bool may_store);
    bool begin_annealing();
    void set_level(State& state, double eps);
    bool cost_range(const State& state, double& range) const;
    void measure(State& state);
    void judge(State& state, double before);
    bool poll();

    Batch batch_;
    Options options_;
    Hooks hooks_;
    Shares shares_;
    const Kernels& kernels_;
    std::vector<State> states_;
    std::vector<State*> active_;
    bool warm_ = false;
    std::int64_t iteration_ = 0;
    double last_poll_ = 0;
};

}  // namespace curvkern::sinkhorn
