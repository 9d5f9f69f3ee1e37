// Newton's method on a queue: the stage that newton_driver.hpp asks for, kernel after kernel.
// Vectors and plan stay on the device; the host reads a few numbers for each decision.
#pragma once

#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "sinkhorn/device.hpp"
#include "sinkhorn/device_launch.hpp"
#include "sinkhorn/device_newton_kernels.hpp"
#include "sinkhorn/newton_driver.hpp"
#include "sinkhorn/newton_linear.hpp"

namespace curvkern::sinkhorn::device {

// Iterations of conjugate gradients between two looks at the residual, and those with the
// diagonal after which an approximate factor is the shorter way. That one is made on the host,
// where it takes as long as so many iterations on the device.
inline constexpr std::int64_t look_every = 16, most_diagonal = 1024;

template <class Queue>
class Stage {
  public:
    Stage(Queue& queue, const Newton& s, double tol, newton::Interrupt& interrupt)
        : queue_(queue), s_(s), tol_(tol), interrupt_(interrupt) {
        start(queue_, s_.p);
        queue_.read(rho_, s_.p.rho, 2);
        const State state = read_state();
        eps_ = state.eps;
        share_ = state.mass_a / std::max(state.mass_a, state.mass_b);
    }

    double eps() const { return eps_; }

    void set_level(double eps) {
        chunks(BeginLevel{{s_}, eps});
        // As in set_eps.
        const double a = eps / rho_[0], b = eps / rho_[1];
        kappa_a_ = 1 + a == 1 ? 0 : a;
        kappa_b_ = 1 + b == 1 ? 0 : b;
    }
    void keep() {
        chunks(FindNonfinite{{s_}});
        chunks(Keep{{s_}});
    }
    void clear() { chunks(Clear{{s_}}); }

    bool starts_from_zero() {
        chunks(BeginLevel{{s_}, eps_});
        add_up<1>(0);
        double nonzero;
        read(&nonzero, 1);
        return nonzero == 0;
    }

    double cost_range() {
        if (s_.p.extent != nullptr) {
            double extent;
            queue_.read(&extent, s_.p.extent, 1);
            return extent * s_.p.scale;
        }
        find_range(queue_, s_.p);
        std::vector<double> range(2 * s_.p.slots);
        queue_.read(range.data(), s_.p.range, 2 * s_.p.slots);
        double least = HUGE_VAL, most = -HUGE_VAL;
        for (std::int64_t slot = 0; slot < s_.p.slots; ++slot) {
            least = std::min(least, range[2 * slot]);
            most = std::max(most, range[2 * slot + 1]);
        }
        return (most - least) * s_.p.scale;
    }

    bool pass(double threshold) {
        sweep(queue_, s_.p, Mode::update);
        chunks(AddColumns{{s_}});
        if (kappa_a_ > 0 || kappa_b_ > 0) chunks(Balance{{s_}});
        chunks(TakeStock{{s_}});
        add_up<3>(0);
        if (!wait()) return false;
        double found[3];
        read(found, 3);
        value_ = found[0];
        resolution_ = 4 * std::numeric_limits<double>::epsilon() * found[1];
        error_ = std::isfinite(value_) ? found[2] * share_ : HUGE_VAL;
        threshold_ = threshold;
        return true;
    }

    bool verify() {
        check(queue_, s_.p, false, 0, tol_, s_.totals);
        if (!wait()) return false;
        read(&error_, 1);
        return true;
    }

    void sweep_columns() { chunks(SweepPsi{{s_}}); }
    double error() const { return error_; }
    double value() const { return value_; }
    double resolution() const { return resolution_; }
    double threshold() const { return threshold_; }

    bool begin_model() {
        gather();
        chunks(BeginModel{{s_}});
        const bool usable = evaluate_at(s_.move);
        for (double level = model_[7]; level > 0; --level) threshold_ *= threshold_factor;
        return usable;
    }
    double model_value() const { return model_[0] + model_[1]; }
    double gradient_norm() const { return model_[2]; }

    bool solve(double reduction) {
        const double goal = reduction * gradient_norm();
        if (needs_factor_ || !iterate(goal)) {
            if (interrupt_.stop()) return false;
            needs_factor_ = true;
            solve_on_host(reduction);
        }
        chunks(FindMean{{s_}});
        return !interrupt_.stop();
    }

    double propose(double step, double cap) {
        chunks(Propose{{s_}, step, cap});
        usable_ = evaluate_at(s_.next);
        const double slope = model_[sum_slope];
        if (!(slope > 0)) evaluate();
        return slope;
    }
    bool evaluate_proposed() const { return usable_; }
    bool evaluate() {
        if (is_at_x_) return usable_;
        chunks(PutGrowth{{s_}, s_.move});
        usable_ = evaluate_at(s_.move);
        return usable_;
    }
    void accept() {
        chunks(Accept{{s_}});
        is_at_x_ = true;
    }
    void end_model() { chunks(EndModel{{s_}}); }

    void save() { chunks(Save{{s_}}); }
    void move(double step) { chunks(MoveFromStart{{s_}, step}); }
    void return_to_start() { move(0); }
    bool interrupted() { return interrupt_.stop(); }

  private:
    template <class Kernel>
    void chunks(const Kernel& kernel) {
        queue_.run(kernel, s_.chunks, usual_threads);
    }
    template <class Kernel>
    void alone(const Kernel& kernel) {
        queue_.run(kernel, 1, usual_threads);
    }
    template <int N>
    void add_up(int first, int step = 1) {
        alone(AddChunks<N>{{s_}, first, step});
    }
    void read(double* target, std::int64_t count) { queue_.read(target, s_.totals, count); }
    State read_state() {
        State state;
        queue_.read(&state, s_.p.state, 1);
        return state;
    }

    // For a pass over the costs, which may be long.
    bool wait() {
        constexpr auto patience = std::chrono::microseconds(200);
        const auto began = std::chrono::steady_clock::now();
        while (!queue_.is_idle()) {
            if (interrupt_.stop()) return false;
            if (std::chrono::steady_clock::now() - began > patience) {
                std::this_thread::sleep_for(patience / 10);
            }
        }
        return !interrupt_.stop();
    }

    // The entries above the threshold of the last pass.
    void gather() {
        const int threads = threads_for(s_.p.m, 8);
        with_costs(s_.p.kind, [&]<class Costs>() {
            queue_.run(CountRow<Costs>{{s_}, threshold_}, s_.p.n, threads);
            alone(PlaceRows{{s_}});
            queue_.run(FillRow<Costs>{{s_}, threshold_}, s_.p.n, threads);
        });
        queue_.run(CountColumns{{s_}}, s_.p.parts, usual_threads);
        chunks(AddCounts{{s_}});
        alone(PlaceColumns{{s_}});
        queue_.run(FillColumns{{s_}}, s_.p.parts, usual_threads);
    }

    bool evaluate_at(const double* x) {
        chunks(EvaluateRows{{s_}});
        chunks(EvaluateColumns{{s_}, x});
        add_up<4>(0);
        read(model_, 8);
        is_at_x_ = x == s_.move;
        return std::isfinite(model_value()) && std::isfinite(gradient_norm());
    }

    // Conjugate gradients with the diagonal. False where it does not do.
    bool iterate(double goal) {
        chunks(StartSolve{{s_}});
        for (std::int64_t k = 0; k < most_diagonal;) {
            for (std::int64_t end = k + look_every; k < end; ++k) {
                chunks(SolveRows{{{s_}, k, goal}});
                chunks(SolveColumns{{{s_}, k, goal}});
                chunks(SolveVectors{{{s_}, k, goal}});
            }
            add_up<2>(sum_energy + static_cast<int>(k % 2), 2);
            double now[2];  // energy, residual
            read(now, 2);
            if (!(now[1] > goal)) return true;
            if (interrupt_.stop() || !(now[0] > 0)) return false;
        }
        return false;
    }

    template <class T>
    std::vector<T> copy(const T* source, std::int64_t count) {
        std::vector<T> target(count);
        queue_.read(target.data(), source, count);
        return target;
    }

    // The same equation where the graph of the plan is almost a tree, by the CPU's solver.
    void solve_on_host(double reduction) {
        const std::int64_t n = s_.p.n, m = s_.p.m;
        newton::SparsePlan plan;
        plan.row_begin = copy(s_.rows.begin, n + 1);
        plan.column = copy(s_.rows.other, plan.entries());
        plan.value = copy(s_.rows.value, plan.entries());
        const std::vector<double> row_mass = copy(s_.row_mass, n);
        const std::vector<double> column_mass = copy(s_.column_mass, m);
        const std::vector<double> target = copy(s_.target, m), x = copy(s_.move, m);
        newton::SparseModel model;
        model.reset(plan, row_mass.data(), column_mass.data(), target.data(), m,
                    1 / (1 + kappa_a_), kappa_b_);
        std::vector<double> direction(m);
        if (model.evaluate(x.data())) {
            newton::LinearSolver(true).solve(model, reduction, direction.data(), interrupt_);
        }
        queue_.write(s_.direction, direction.data(), m);
    }

    Queue& queue_;
    const Newton s_;
    const double tol_;
    newton::Interrupt& interrupt_;
    double eps_ = 1, rho_[2], share_ = 1;  // share: of mass_a in the larger mass
    double kappa_a_ = 0, kappa_b_ = 0;     // eps / rho at this level
    double error_ = 0, value_ = 0, resolution_ = 0, threshold_ = 0;
    double model_[8] = {};  // of s_.totals: value of rows and of columns, norm, slope, level
    bool usable_ = false, is_at_x_ = false, needs_factor_ = false;
};

// Problem number k alone.
inline Batch pick(Batch p, std::int64_t k) {
    const std::int64_t bytes = p.kind == Cost::dense32 ? 4 : 8;
    const auto skip = [k](const double*& array, std::int64_t each) {
        if (array != nullptr) array += k * each;
    };
    if (p.cost != nullptr) p.cost = static_cast<const char*>(p.cost) + k * p.n * p.m * bytes;
    skip(p.x, p.n * p.dims);
    skip(p.y_transposed, p.m * p.dims);
    skip(p.a, p.n);
    skip(p.b, p.m);
    skip(p.eps, 1);
    skip(p.rho, 2);
    skip(p.extent, 1);
    p.batch = 1;
    return p;
}

template <class Queue>
bool solve_newton(const Place& place, Batch batch, const newton::NewtonOptions& options,
                  bool (*interrupted)(), const NewtonResults& results, double* workspace) {
    Queue queue(place, "sinkhorn");
    newton::Interrupt interrupt(interrupted);
    for (std::int64_t k = 0; k < batch.batch; ++k) {
        Newton s{};
        s.p = pick(batch, k);
        lay_out(s, workspace);
        s.f = results.f + k * batch.n;
        s.g = results.g + k * batch.m;
        Stage<Queue> stage(queue, s, options.tol, interrupt);
        newton::NewtonResult result{};
        newton::Driver<Stage<Queue>> driver(stage, stage.eps(), options,
                                            results.trace + k * results.trace_size,
                                            results.trace_size);
        if (!driver.run(result)) return false;
        // The last pass may have overflown; what was kept has not.
        if (!result.converged) stage.set_level(stage.eps());
        finish_columns(queue, s.p, Mode::complete);  // points without mass
        stage.keep();
        const double found[3] = {result.error, static_cast<double>(result.iterations),
                                 result.converged ? 1.0 : 0.0};
        queue.write(results.info + 3 * k, found, 3);
    }
    return true;
}

// The float64 numbers that one problem needs.
template <class Queue>
std::int64_t newton_workspace_size(std::int64_t n, std::int64_t m) {
    Newton s{};
    s.p.batch = 1;
    s.p.n = n;
    s.p.m = m;
    return lay_out(s, nullptr);
}

#define CURVKERN_DEVICE_NEWTON(Queue)                                                    \
    template bool solve_newton<Queue>(const Place&, Batch, const newton::NewtonOptions&, \
                                      bool (*)(), const NewtonResults&, double*);        \
    template std::int64_t newton_workspace_size<Queue>(std::int64_t, std::int64_t);

}  // namespace curvkern::sinkhorn::device
