// The Sinkhorn method on a queue: which kernels run, on what grid, in which order. The host
// waits for the device at checks only.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>
#include <vector>

#include "sinkhorn/device.hpp"
#include "sinkhorn/device_passes.hpp"

namespace curvkern::sinkhorn::device {

template <class Queue>
class Solver {
  public:
    Solver(Queue& queue, const Batch& p, const Options& options, const Hooks& hooks,
           const Results& results)
        : queue_(queue), p_(p), options_(options), hooks_(hooks), results_(results) {}

    bool run() {
        begin();
        const std::int64_t every = options_.check_every, last = options_.max_iter;
        std::int64_t next_check = p_.f != nullptr ? 0 : std::min(every, last);
        for (;;) {
            if (iteration_ == next_check) {
                if (!check(iteration_ == last)) return false;
                if (all_done() || iteration_ == last) break;
                next_check =
                    every > last ? last : std::min((iteration_ / every + 1) * every, last);
            }
            advance(next_check - iteration_);
            if (!poll()) return false;
        }
        complete(queue_, p_, results_.f, results_.g, results_.info);
        return true;
    }

  private:
    // Problems that one block can solve while others solve theirs.
    static constexpr std::int64_t small_problem = 1 << 16, sweeps_at_once = 32;

    template <class Kernel>
    void each_problem(const Kernel& kernel) {
        queue_.run(kernel, p_.batch, usual_threads);
    }

    void begin() {
        start(queue_, p_);
        if (options_.anneal && p_.f == nullptr) {
            if (p_.extent == nullptr) find_range(queue_, p_);
            each_problem(BeginAnnealing{{p_}, static_cast<double>(options_.max_iter)});
        }
        read_states();
        for (const State& s : states_) {
            unbalanced_ |= s.inverse_rho_a > 0 || s.inverse_rho_b > 0;
            std::int64_t sweeps = 0;
            for (double eps = s.eps; eps > s.target; eps /= anneal_factor) {
                sweeps += static_cast<std::int64_t>(level_sweeps);
            }
            annealing_ = std::max(annealing_, sweeps);
        }
        const std::int64_t blocks = p_.batch * p_.slots;
        by_problem_ = p_.n * p_.m <= small_problem && p_.m <= narrow &&
                      (p_.slots == 1 || blocks >= most_slots);
    }

    // At most so many sweeps, with what follows each.
    void advance(std::int64_t most) {
        if (by_problem_) {
            const std::int64_t sweeps = std::min(most, sweeps_at_once);
            with_costs(p_.kind, [&]<class Costs>() {
                const int threads = threads_for(p_.m, 8);
                const std::int64_t shared = std::max<std::int64_t>(p_.m, threads + warp_size);
                queue_.run(Iterate<narrow_rows, narrow_columns, Costs>{{p_}, updates(), sweeps},
                           p_.batch, threads, shared);
            });
            iteration_ += sweeps;
            return;
        }
        sweep(queue_, p_, Mode::update);
        finish_columns(queue_, p_, Mode::update);
        if ((unbalanced_ && options_.translate) || options_.symmetric ||
            iteration_ < annealing_) {
            each_problem(Settle{{p_}, updates()});
        }
        ++iteration_;
    }

    bool check(bool last) {
        device::check(queue_, p_, last, iteration_, options_.tol, results_.errors);
        if (!wait()) return false;
        read_states();
        double largest = 0;
        for (const State& s : states_) {
            if (!(s.error <= largest) && !std::isnan(largest)) largest = s.error;
        }
        return !hooks_.checked || hooks_.checked(iteration_, largest);
    }

    Updates updates() const { return {options_.translate, options_.symmetric}; }

    void read_states() {
        states_.resize(p_.batch);
        queue_.read(states_.data(), p_.state, p_.batch);
    }

    bool all_done() const {
        return std::all_of(states_.begin(), states_.end(),
                           [](const State& s) { return s.done != 0; });
    }

    // For the device, which may have many sweeps ahead of it.
    bool wait() {
        while (!queue_.is_idle()) {
            if (!poll()) return false;
            std::this_thread::sleep_for(std::chrono::microseconds(20));
        }
        return true;
    }

    bool poll() {
        const auto now = std::chrono::steady_clock::now();
        if (now - last_poll_ < std::chrono::milliseconds(50)) return true;
        last_poll_ = now;
        return hooks_.interrupted == nullptr || !hooks_.interrupted();
    }

    Queue& queue_;
    const Batch p_;
    const Options options_;
    const Hooks& hooks_;
    const Results results_;
    std::vector<State> states_;
    std::int64_t iteration_ = 0, annealing_ = 0;  // sweeps, and those before the wanted eps
    bool unbalanced_ = false, by_problem_ = false;
    std::chrono::steady_clock::time_point last_poll_ = std::chrono::steady_clock::now();
};

template <class Queue>
bool solve(const Place& place, Batch p, const Options& options, const Hooks& hooks,
           const Results& results, double* workspace) {
    Queue queue(place, "sinkhorn");
    lay_out(p, workspace);
    return Solver<Queue>(queue, p, options, hooks, results).run();
}

template <class Queue>
void products(const Place& place, Batch p, Products out, double* workspace) {
    Queue queue(place, "sinkhorn_products");
    double* rest = workspace + lay_out(p, workspace);
    out.row_totals = rest;
    out.partial = rest + 2 * p.batch * p.n;
    queue.run(Start{{p}}, p.batch, usual_threads);
    const std::int64_t panels = ceil_divide(p.m, usual_threads);
    with_costs(p.kind, [&]<class Costs>() {
        for (std::int64_t first = 0; first < std::max<std::int64_t>(out.count, 1);
             first += columns_at_once) {
            if (out.v != nullptr || (out.totals != nullptr && first == 0)) {
                queue.run(PlanRow<Costs>{{p}, out, first}, p.batch * p.n, threads_for(p.m, 8));
            }
            if (out.u == nullptr) continue;
            queue.run(PlanColumns<Costs>{{p}, out, first, panels}, p.batch * p.parts * panels,
                      usual_threads);
            queue.run(AddParts{{p}, out, first, panels}, p.batch * panels, usual_threads);
        }
    });
    if (out.totals != nullptr) queue.run(AddTotals{{p}, out}, p.batch, usual_threads);
}

template <class Queue>
void gradient(const Place& place, Batch p, const Gradient& to, double* workspace) {
    Queue queue(place, "sinkhorn_points_gradient");
    lay_out(p, workspace);
    queue.run(Start{{p}}, p.batch, usual_threads);
    with_points(p.kind, [&]<class Costs>() {
        queue.run(GradientRow<Costs>{{p}, to}, p.batch * p.n, threads_for(p.m, 8));
    });
}

template <class Queue>
constexpr Calls calls_on{solve<Queue>, products<Queue>, gradient<Queue>, solve_newton<Queue>,
                         newton_workspace_size<Queue>};

}  // namespace curvkern::sinkhorn::device
