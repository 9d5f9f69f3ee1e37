"""Make sinkhorn.npz, the truth for curvkern.ot: `python tests/data/make_sinkhorn.py`.

Small problems of entropic transport, solved by Newton's method on the optimality conditions in
50 digits with dense LU factors. Nothing is shared with curvkern. Derivatives are central
differences of such solutions along one direction for each group of arguments, with a step of
1e-12, whose truncation and rounding errors both are below 1e-20.

value = min <P, C> + eps KL(P | a b') + rho_a KL(P 1 | a) + rho_b KL(P' 1 | b);  loss = <P, W>.
Fields of problem NAME: a, b, C or (x, y, cost), eps, rho, plan, sum (f_i + g_j), value, linear,
kl, W; for the groups weights, cost, eps and rho the directions d_*, and value_*, loss_* and
curvature_*, the first derivatives of value and loss and the second of the value.
"""

from pathlib import Path

import mpmath as mp
import numpy as np

mp.mp.dps = 50
STEP = mp.mpf(10) ** -12
SEED = 20240

COSTS = {
    "sqeuclidean": lambda u, v: sum((p - q) ** 2 for p, q in zip(u, v, strict=True)),
    "half_sqeuclidean": lambda u, v: sum((p - q) ** 2 for p, q in zip(u, v, strict=True)) / 2,
    "euclidean": lambda u, v: mp.sqrt(sum((p - q) ** 2 for p, q in zip(u, v, strict=True))),
    "l1": lambda u, v: sum(abs(p - q) for p, q in zip(u, v, strict=True)),
}


def exact(array):
    """Nested lists of mpf."""
    return np.vectorize(mp.mpf, otypes=[object])(array)


def costs(problem):
    if "C" in problem:
        return problem["C"]
    function = COSTS[problem["cost"]]
    return np.array([[function(u, v) for v in problem["y"]] for u in problem["x"]], object)


def start(a, b, C, eps, rho):
    """Potentials by 3000 log-domain sweeps in float64."""
    a, b, C = (t.astype(float) for t in (a, b, C))
    eps, rho = float(eps), [float(r) for r in rho]
    f, g = np.zeros(len(a)), np.zeros(len(b))
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(a), np.log(b)
    for _ in range(3000):
        f = -np.logaddexp.reduce(log_b + (g - C) / eps, 1) / (1 / eps + 1 / rho[0])
        g = -np.logaddexp.reduce(log_a[:, None] + (f[:, None] - C) / eps, 0)
        g = g / (1 / eps + 1 / rho[1])
    return f, g


def solve(problem, guess):
    """The potentials f, g and the kernel e of a problem, by Newton's method."""
    a, b, eps, rho = (problem[key] for key in ("a", "b", "eps", "rho"))
    C = costs(problem)
    n, m = C.shape
    f, g = (exact(t) for t in guess)
    soft = [mp.mpf(0) if mp.isinf(r) else 1 / r for r in rho]
    balanced = not any(soft)
    for _ in range(12):
        e = np.array(
            [[mp.exp((f[i] + g[j] - C[i, j]) / eps) for j in range(m)] for i in range(n)]
        )
        rows = [mp.exp(-f[i] * soft[0]) for i in range(n)]
        columns = [mp.exp(-g[j] * soft[1]) for j in range(m)]
        M, residual = mp.zeros(n + m), mp.zeros(n + m, 1)
        for i in range(n):
            total = mp.fsum(b * e[i])
            residual[i] = rows[i] - total
            M[i, i] = total / eps + rows[i] * soft[0]
            for j in range(m):
                M[i, n + j] = b[j] * e[i, j] / eps
                M[n + j, i] = a[i] * e[i, j] / eps
        for j in range(m):
            total = mp.fsum(a * e[:, j])
            residual[n + j] = columns[j] - total
            M[n + j, n + j] = total / eps + columns[j] * soft[1]
        if balanced:  # the step with sum a df = sum b dg, on which M is regular
            for i in range(n + m):
                sign = 1 if i < n else -1
                for j in range(n + m):
                    M[i, j] += sign * (a[j] if j < n else -b[j - n])
        step = mp.lu_solve(M, residual)
        f = f + np.array([step[i] for i in range(n)], object)
        g = g + np.array([step[n + j] for j in range(m)], object)
        if max(abs(s) for s in step) < mp.mpf(10) ** -45 * max(1, eps):
            break
    else:
        raise ArithmeticError("Newton's method has not converged")
    return f, g, C


def measures(problem, guess):
    """value, linear, kl, plan, f + g of the solved problem."""
    f, g, C = solve(problem, guess)
    a, b, eps, rho = (problem[key] for key in ("a", "b", "eps", "rho"))
    total = f[:, None] + g[None, :]
    allowed = np.vectorize(lambda c: not mp.isinf(c), otypes=[bool])(C)
    exponent = np.where(allowed, total - np.where(allowed, C, mp.mpf(0)), mp.mpf(0)) / eps
    plan = a[:, None] * b * np.vectorize(mp.exp, otypes=[object])(exponent)
    plan = np.where(allowed, plan, mp.mpf(0))
    linear = mp.fsum((plan * np.where(allowed, C, mp.mpf(0))).ravel())
    kl = mp.fsum((plan * exponent).ravel()) - mp.fsum(plan.ravel()) + mp.fsum(a) * mp.fsum(b)
    value = linear + eps * kl
    for mass, potential, r in ((a, f, rho[0]), (b, g, rho[1])):
        if not mp.isinf(r):
            t = [p / r for p in potential]
            value += r * mp.fsum(
                m * (mp.exp(-s) * (-s) - mp.exp(-s) + 1) for m, s in zip(mass, t, strict=True)
            )
    return value, linear, kl, plan, total


def moved(problem, direction, step):
    return {k: v + step * direction[k] if k in direction else v for k, v in problem.items()}


def directions(problem, rng):
    """One direction for each group of arguments."""
    a, b = (exact(rng.standard_normal(len(problem[key]))) for key in "ab")
    if all(mp.isinf(r) for r in problem["rho"]):
        a, b = a - mp.fsum(a) / len(a), b - mp.fsum(b) / len(b)
    # A negative mass is no matter for the formula, so zeros may move both ways.
    yield "weights", {"a": a, "b": b}
    if "C" in problem:
        yield "cost", {"C": exact(rng.standard_normal(problem["C"].shape))}
    else:
        yield "cost", {k: exact(rng.standard_normal(problem[k].shape)) for k in "xy"}
    yield "eps", {"eps": mp.mpf(1)}
    if not any(mp.isinf(r) for r in problem["rho"]):
        yield "rho", {"rho": exact(rng.standard_normal(2))}


def problems(rng):
    def weights(n, zeros=0):
        w = rng.random(n) + 0.1
        w[:zeros] = 0
        return w / w.sum()

    def points(n, m, d):
        return {"x": rng.random((n, d)), "y": rng.random((m, d)) + 0.2}

    uniform = np.full(8, 1 / 8)
    hard = [np.inf, np.inf]
    forbidden = rng.random((6, 7))
    forbidden[rng.random((6, 7)) < 0.3] = np.inf
    forbidden[np.arange(6), np.arange(6)] = 0.5
    forbidden[:, 6] = 0.2
    yield "assignment", {"a": uniform, "b": uniform, "C": rng.random((8, 8)), "eps": 0.03}, hard
    yield (
        "negative",
        {"a": weights(5), "b": weights(6), "C": -9 * rng.random((5, 6)), "eps": 1.0},
        hard,
    )
    yield "forbidden", {"a": weights(6), "b": weights(7), "C": forbidden, "eps": 0.1}, hard
    yield (
        "zeros",
        {
            "a": weights(6, 2),
            "b": weights(7, 1),
            **points(6, 7, 2),
            "cost": "sqeuclidean",
            "eps": 0.1,
        },
        hard,
    )
    yield (
        "euclidean",
        {"a": weights(5), "b": weights(6), **points(5, 6, 3), "cost": "euclidean", "eps": 0.05},
        hard,
    )
    yield (
        "l1",
        {"a": weights(6), "b": weights(5), **points(6, 5, 2), "cost": "l1", "eps": 0.1},
        hard,
    )
    yield (
        "unbalanced",
        {
            "a": 2 * weights(5),
            "b": weights(6, 1),
            **points(5, 6, 2),
            "cost": "half_sqeuclidean",
            "eps": 0.05,
        },
        [0.4, 0.7],
    )
    yield (
        "semi",
        {"a": weights(5), "b": 3 * weights(4), "C": rng.random((5, 4)), "eps": 0.2},
        [np.inf, 0.5],
    )
    yield (
        "mass",
        {
            "a": 1e-3 * weights(4),
            "b": 1e-3 * weights(5),
            "C": 1e3 * rng.random((4, 5)),
            "eps": 30.0,
        },
        hard,
    )
    yield (
        "single",
        {"a": np.ones(1), "b": weights(4), "C": rng.random((1, 4)), "eps": 0.3},
        hard,
    )


def main():
    rng = np.random.default_rng(SEED)
    out = {}
    for name, raw, rho in problems(rng):
        problem = {k: v if k == "cost" else exact(v) for k, v in raw.items()}
        problem["eps"] = mp.mpf(raw["eps"])
        problem["rho"] = exact(rho)
        total_a, total_b = mp.fsum(problem["a"]), mp.fsum(problem["b"])
        if rho == [np.inf, np.inf]:  # equal to the last digit, as the solver makes them
            problem["b"] = problem["b"] * (total_a / total_b)
        guess = start(problem["a"], problem["b"], costs(problem), problem["eps"], rho)
        value, linear, kl, plan, total = measures(problem, guess)
        W = rng.standard_normal(plan.shape)
        found = {**raw, "rho": rho, "value": value, "linear": linear, "kl": kl, "W": W}
        found |= {"plan": plan.astype(float), "sum": total.astype(float)}
        for group, direction in directions(problem, rng):
            up = measures(moved(problem, direction, STEP), guess)
            down = measures(moved(problem, direction, -STEP), guess)
            found |= {f"d_{key}": np.asarray(v, float) for key, v in direction.items()}
            found[f"value_{group}"] = (up[0] - down[0]) / (2 * STEP)
            found[f"curvature_{group}"] = (up[0] - 2 * value + down[0]) / STEP**2
            found[f"loss_{group}"] = mp.fsum(((up[3] - down[3]) * W).ravel()) / (2 * STEP)
        for key, field in found.items():
            out[f"{name}/{key}"] = field if key == "cost" else np.asarray(field, float)
        print(name, mp.nstr(value, 15))
    np.savez_compressed(Path(__file__).with_name("sinkhorn.npz"), **out)


if __name__ == "__main__":
    main()
