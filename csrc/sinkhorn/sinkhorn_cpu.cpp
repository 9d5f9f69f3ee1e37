// The table of CPU kernels, compiled once per instruction set with CURVKERN_ISA_NAMESPACE.
#include "plan.hpp"

namespace curvkern::sinkhorn {
namespace {

constexpr int f64 = static_cast<int>(Arithmetic::float64);
constexpr int f32 = static_cast<int>(Arithmetic::float32);

template <class Rows>
void fill_arithmetic(Kernels& k, int cost, int arithmetic) {
    k.rows[cost][arithmetic] = sweep<Rows>;
    k.columns[cost][arithmetic] = finish_columns<Rows>;
}

template <class T>
void fill_dense(Kernels& k, Cost cost) {
    const int at = static_cast<int>(cost);
    fill_arithmetic<DenseRows<T, double>>(k, at, f64);
    if constexpr (!is_double<T>) fill_arithmetic<DenseRows<T, float>>(k, at, f32);
    k.plan[at] = plan_products<DenseRows<T, double>>;
    k.range[at] = dense_range<T>;
}

template <Cost Kind>
void fill_points(Kernels& k) {
    const int at = static_cast<int>(Kind);
    fill_arithmetic<PointRows<Kind, double>>(k, at, f64);
    fill_arithmetic<PointRows<Kind, float>>(k, at, f32);
    k.plan[at] = plan_products<PointRows<Kind, double>>;
    k.gradient[at] = points_gradient<Kind>;
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const Kernels& kernels() {
    static const Kernels table = [] {
        Kernels k{};
        fill_dense<double>(k, Cost::dense64);
        fill_dense<float>(k, Cost::dense32);
        fill_points<Cost::sqeuclidean>(k);
        fill_points<Cost::euclidean>(k);
        fill_points<Cost::l1>(k);
        k.log_sum = [](const Side& side, const double* potential, double factor) {
            return log2_sum(side, potential, factor);
        };
        k.split = [](const Problem& p) { split_potentials(p); };
        k.drift = [](const Side& side) { return drift(side); };
        return k;
    }();
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::sinkhorn
