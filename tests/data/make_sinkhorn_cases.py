"""Solve the problems of sinkhorn_cases.npz: `python tests/data/make_sinkhorn_cases.py`.

The problems themselves (a, b, eps, rho, and C or x, y, cost, scale) were drawn once: uniform
assignments, Gaussian clouds, an image against another, weights of exact 0, penalties, a batch
whose eps differ by 130. This script reads them, solves each in 80-bit arithmetic by two methods
that share nothing, stops unless they agree and also agree with what the file held before, and
writes the file anew. Nothing is shared with curvkern. It takes some minutes.

* Newton's method on the dual along a path of falling eps, with dense float64 factors whose
  solutions are refined in 80 bits. Its results are what is stored.
* Sinkhorn's iterations in log domain, over 100 000 of them for the slowest problem; averaged
  ones from a measure to itself. Potentials agree to 1e-12 eps (1e-9 eps where the contraction
  is above 0.999), values to 1e-15.
* Derivatives are implicit ones of Newton's solution. Five-point differences of 80-bit solutions
  agree with them to 1e-8, along one direction each.

value = min <P, C> + eps KL(P | a b') + rho_a KL(P 1 | a) + rho_b KL(P' 1 | b). Fields of
problem NAME: f, g, value, linear = <P, C>, kl = KL(P | a b'); grad_* the gradients of value (in
balanced problems those in a and b have a constant free); plan_L = <P, W> and plan_gC, plan_gx,
plan_gy its gradients, plan_gC_dot = <plan_gC, V>, with W and V of `normals`; hvp_xx the second
derivative of value in x along hvp_v; divergence and div_grad_* the debiased one, its gradients.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("sinkhorn_cases.npz")
WIDE = np.longdouble
INPUTS = ("a", "b", "eps", "rho", "C", "x", "y", "cost", "scale", "hvp_v")
FACTOR = {"sqeuclidean": 1.0, "half_sqeuclidean": 0.5}
LARGEST = 20_000  # entries of a plan_gC that is stored: 8 bytes each, which do not compress


def normals(shape):
    """W and V."""
    return [np.random.default_rng(seed).standard_normal(shape) for seed in (777, 778)]


class Solution:
    """Potentials, kernel and plan of a problem in 80 bits, and its first derivatives."""

    def __init__(self, a, b, C, eps, rho, f, g):
        self.a, self.b, self.C, self.eps, self.rho = a, b, C, eps, rho
        self.f, self.g = f, g
        self.e = np.exp((f[:, None] + g - C) / eps)
        self.P = a[:, None] * (b * self.e)
        self.r, self.s = self.P.sum(1), self.P.sum(0)

    def residual(self):
        """Of the optimality conditions, with masses."""
        a, b = self.a * np.exp(-self.f / self.rho[0]), self.b * np.exp(-self.g / self.rho[1])
        return np.concatenate([a - self.r, b - self.s])

    def solve(self, u, v):
        """(p, q) of r (1 + eps / rho) p + P q = u, P' p + s (1 + eps / rho) q = v."""
        n, live = len(u), np.concatenate([self.a, self.b]) > 0
        M = np.zeros((len(live), len(live)), WIDE)
        M[:n, n:], M[n:, :n] = self.P, self.P.T
        soft = 1 + self.eps / self.rho
        M[np.diag_indices(len(live))] = np.concatenate([soft[0] * self.r, soft[1] * self.s])
        M = M[np.ix_(live, live)]
        scale = 1 / np.sqrt(np.diag(M))
        M = scale[:, None] * M * scale
        values, vectors = np.linalg.eigh(M.astype(float))
        keep = values > 1e-13  # but for the constant that balanced problems leave free
        rhs = scale * np.concatenate([u, v])[live]
        w = np.zeros_like(rhs)
        for _ in range(8):
            projected = vectors[:, keep].T @ (rhs - M @ w).astype(float)
            w = w + vectors[:, keep] @ (projected / values[keep])
        out = np.zeros(len(live), WIDE)
        out[live] = scale * w
        return out[:n], out[n:]

    def penalty(self, potential, rho):
        return potential if np.isinf(rho) else -rho * np.expm1(-potential / rho)

    @property
    def dual(self):
        a, b, (rho_a, rho_b) = self.a, self.b, self.rho
        value = (a * self.penalty(self.f, rho_a)).sum() + (
            b * self.penalty(self.g, rho_b)
        ).sum()
        return value - self.eps * (self.P.sum() - a.sum() * b.sum())

    @property
    def linear(self):
        return (self.P * self.C).sum()

    @property
    def kl(self):
        exponent = (self.f[:, None] + self.g - self.C) / self.eps
        return (self.P * exponent).sum() - self.P.sum() + self.a.sum() * self.b.sum()

    @property
    def weight_gradients(self):
        """Of the value in a and b."""
        (rho_a, rho_b), eps, f, g = self.rho, self.eps, self.f, self.g
        return (
            self.penalty(f, rho_a) - eps * (np.exp(-f / rho_a) - self.b.sum()),
            self.penalty(g, rho_b) - eps * (np.exp(-g / rho_b) - self.a.sum()),
        )

    def plan_gradient(self, W):
        """Of <P, W> in C."""
        PW = self.P * W
        p, q = self.solve(PW.sum(1), PW.sum(0))
        return (self.P * (p[:, None] + q) - PW) / self.eps

    def plan_tangent(self, dC):
        """dP along dC."""
        moved = self.P * dC
        p, q = self.solve(moved.sum(1), moved.sum(0))
        return (self.P * (p[:, None] + q) - moved) / self.eps


def newton(a, b, C, eps, rho, guess=None):
    """The solution by Newton's method, on a path of falling eps unless there is a guess."""
    level = eps if guess is not None else max(eps, WIDE(np.ptp(C)) / 4)
    f, g = guess or (np.zeros(len(a), WIDE), np.zeros(len(b), WIDE))
    while True:
        at = sweep(a, b, C, level, rho, f, g, 2 if guess is None else 0)
        for _ in range(60):
            residual = level * at.residual()
            p, q = at.solve(residual[: len(a)], residual[len(a) :])
            size, step = max(np.abs(p).max(), np.abs(q).max()), WIDE(1)
            trial = Solution(a, b, C, level, rho, at.f + p, at.g + q)
            while size > 1e-6 * level and not trial.dual > at.dual and step > 1e-4:
                step /= 2
                trial = Solution(a, b, C, level, rho, at.f + step * p, at.g + step * q)
            at = trial
            if size < 1e-18 * max(np.abs(at.f).max(), level):
                break
        f, g = at.f, at.g
        if level == eps:
            return finished(at)
        level = max(eps, level / 2)


def sweep(a, b, C, eps, rho, f, g, count):
    """So many Sinkhorn iterations in log domain."""
    at = Solution(a, b, C, eps, rho, f, g)
    soft = 1 + eps / rho
    for _ in range(count):
        f = (at.f - eps * np.log(at.e @ b)) / soft[0]
        at = Solution(a, b, C, eps, rho, f, at.g)
        at = Solution(a, b, C, eps, rho, f, (at.g - eps * np.log(at.e.T @ a)) / soft[1])
    return at


def finished(at):
    """Points without mass at their soft c-transforms; sum a f = sum b g where balanced."""
    soft = 1 + at.eps / at.rho
    f = np.where(at.a > 0, at.f, (at.f - at.eps * np.log(at.e @ at.b)) / soft[0])
    g = np.where(at.b > 0, at.g, (at.g - at.eps * np.log(at.e.T @ at.a)) / soft[1])
    if np.isinf(at.rho).all():
        shift = ((at.b * g).sum() / at.b.sum() - (at.a * f).sum() / at.a.sum()) / 2
        f, g = f + shift, g - shift
    return Solution(at.a, at.b, at.C, at.eps, at.rho, f, g)


def iterated(a, b, C, eps, rho):
    """Sinkhorn's iterations from 0 until nothing moves, with exponentials every 200th time.

    In between they are products with the kernel of the potentials of that time.
    """
    soft = 1 + eps / rho
    low = C.min()
    f = low - eps * np.log((b * np.exp((low - C) / eps)).sum(1))
    before = WIDE("inf")
    at = sweep(a, b, C, eps, rho, f, np.zeros(len(b), WIDE), 300)
    for _ in range(3000):
        f, g = at.f, at.g
        column = np.ones_like(b)
        for _ in range(200):
            new_f = (f - eps * np.log(at.e @ (b * column))) / soft[0]
            row = np.exp((new_f - f) / eps)
            new_g = (g - eps * np.log(at.e.T @ (a * row))) / soft[1]
            column = np.exp((new_g - g) / eps)
        change = max(np.abs(new_f - f).max(), np.abs(new_g - g).max()) / eps
        at = Solution(a, b, C, eps, rho, new_f, new_g)
        if change < 1e-15 or (change < 1e-12 and not change < before):
            return finished(at)
        before = change
    raise ArithmeticError("Sinkhorn's iterations have not converged")


def averaged(a, C, eps, rho):
    """The solution from a measure to itself, whose error each averaged iteration halves."""
    f = np.zeros(len(a), WIDE)
    for _ in range(200):
        at = Solution(a, a, C, eps, rho, f, f)
        f = (f + (f - eps * np.log(at.e @ a)) / (1 + eps / rho[0])) / 2
    return Solution(a, a, C, eps, rho, f, f)


class Case:
    """One problem of the file."""

    def __init__(self, name, stored):
        self.name = name
        self.stored = {
            key.split("/")[1]: v for key, v in stored.items() if key.startswith(f"{name}/")
        }
        for key in ("a", "b", "eps", "rho", "C", "x", "y", "hvp_v"):
            if key in self.stored:
                setattr(self, key, self.stored[key].astype(WIDE))
        self.points = "x" in self.stored
        if np.isinf(self.rho).all():  # equal to the last digit, as a solver makes them
            self.b = self.b * (self.a.sum() / self.b.sum())
        if self.points:
            self.factor = WIDE(float(self.stored["scale"])) * FACTOR[str(self.stored["cost"])]

    def costs(self, x, y):
        return self.factor * ((x[:, None] - y) ** 2).sum(2)

    def slopes(self, x, y):
        """dC_ij / dx_i, (n, m, d)."""
        return 2 * self.factor * (x[:, None] - y)

    def solved(self, x=None, y=None, C=None, guess=None, solver=newton):
        if C is None:
            C = self.costs(self.x if x is None else x, self.y if y is None else y)
        options = {} if guess is None else {"guess": guess}
        return solver(self.a, self.b, C, self.eps, self.rho, **options)

    def truth(self):
        at = self.solved(C=None if self.points else self.C)
        other = self.solved(C=at.C, solver=iterated)
        found = {"f": at.f, "g": at.g, "value": at.dual, "linear": at.linear, "kl": at.kl}
        slow = float(np.linalg.svd(normalised(at))[1][1] ** 2) > 0.999
        apart = (at.f[:, None] + at.g) - (other.f[:, None] + other.g)
        agree(self.name, "potentials", apart / self.eps, 0, 1e-9 if slow else 1e-12)
        agree(self.name, "value", other.dual, at.dual, 1e-15)
        found["grad_a"], found["grad_b"] = at.weight_gradients
        W, V = normals(at.P.shape)
        gC = at.plan_gradient(W)
        found |= {"plan_L": (at.P * W).sum(), "plan_gC_dot": (gC * V).sum()}
        if gC.size <= LARGEST:
            found["plan_gC"] = gC
        self.differences(at, V, {"value": at.P, "plan": gC}, W)
        if self.points:
            found |= self.of_points(at, gC)
        return found

    def differences(self, at, V, gradients, W):
        """Five-point differences along a change V of the costs."""
        h = 1e-6 * self.eps
        moved = [self.solved(C=at.C + k * h * V, guess=(at.f, at.g)) for k in (-2, -1, 1, 2)]
        for name, of in (("value", lambda s: s.dual), ("plan", lambda s: (s.P * W).sum())):
            expected = (gradients[name] * V).sum()
            agree(self.name, f"slope of {name}", five(map(of, moved), h), expected, 1e-8)

    def of_points(self, at, gC):
        """Gradients in the points, the second derivative and the divergence."""
        x, y, v = self.x, self.y, self.hvp_v
        slopes = self.slopes(x, y)

        def through(in_C, slopes=slopes):
            product = in_C[:, :, None] * slopes
            return product.sum(1), -product.sum(0)

        found = dict(zip(("grad_x", "grad_y"), through(at.P), strict=True))
        found |= dict(zip(("plan_gx", "plan_gy"), through(gC), strict=True))
        dP = at.plan_tangent((slopes * v[:, None]).sum(2))
        found["hvp_v"] = v
        found["hvp_xx"] = through(dP)[0] + 2 * self.factor * at.r[:, None] * v
        h = 1e-6 * self.eps
        moved = [self.solved(x=x + k * h * v, guess=(at.f, at.g)) for k in (-2, -1, 1, 2)]
        gradients = [
            (s.P[:, :, None] * self.slopes(x + k * h * v, y)).sum(1)
            for k, s in zip((-2, -1, 1, 2), moved, strict=True)
        ]
        agree(self.name, "second derivative", five(gradients, h), found["hvp_xx"], 1e-8)
        a, b, eps, rho = self.a, self.b, self.eps, self.rho
        own = [
            newton(w, w, self.costs(p, p), eps, rho[[k, k]])
            for k, (w, p) in enumerate(((a, x), (b, y)))
        ]
        found["divergence"] = at.dual - (own[0].dual + own[1].dual) / 2
        if not np.isinf(rho).all():
            found["divergence"] += eps / 2 * (a.sum() - b.sum()) ** 2
        for key, p, s in zip("xy", (x, y), own, strict=True):
            iterations = averaged(s.a, s.C, eps, s.rho)
            agree(self.name, f"divergence of {key}", iterations.dual, s.dual, 1e-15)
            own_gradient = (s.P[:, :, None] * self.slopes(p, p)).sum(1)
            found[f"div_grad_{key}"] = found[f"grad_{key}"] - own_gradient
        return found


def normalised(at):
    live, other = at.a > 0, at.b > 0
    scaled = at.P[np.ix_(live, other)] / np.sqrt(np.outer(at.r[live], at.s[other]))
    return scaled.astype(float)


def five(values, h):
    low, lower, higher, high = values
    return (low - 8 * lower + 8 * higher - high) / (12 * h)


def agree(name, what, found, truth, bound):
    off = np.abs(found - truth).max() / max(np.abs(truth).max(), WIDE(1e-300))
    off = off if np.any(truth) else np.abs(found).max()
    print(f"  {what}: {float(off):.1e}")
    if not off <= bound:
        raise ArithmeticError(f"{name}: {what} apart by {float(off):.3g}")


def main():
    with np.load(FILE) as data:
        stored = dict(data)
    out = {"names": stored["names"]}
    for name in stored["names"]:
        print(name)
        case = Case(name, stored)
        found = case.truth()
        for key, truth in found.items():
            if key in case.stored and key not in (*INPUTS, "f", "g", "grad_a", "grad_b"):
                agree(name, f"{key} as stored", truth.astype(float), case.stored[key], 1e-10)
        fields = {key: case.stored[key] for key in INPUTS if key in case.stored}
        fields |= {key: np.asarray(v, float) for key, v in found.items()}
        out |= {f"{name}/{key}": v for key, v in fields.items()}
    np.savez_compressed(FILE, **out)


if __name__ == "__main__":
    main()
