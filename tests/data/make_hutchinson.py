"""Make hutchinson.npz, the truth for curvkern.curvature and curvkern.optim.

    python tests/data/make_hutchinson.py

Hessians are torch's, dense, in float64, and checked against differences of gradients. What is
made of them is NumPy written down from the papers, element by element. Nothing is shared with
curvkern.
`meta_json` has the settings.

model/N/p{i}, x, y; H, grad over the concatenated parameters; Z, HZ: probes as rows and products
traj/N/C/Z: probes [step, probe, element]; P{t}: parameters after step t; m_end, v_end
traj/N/{oasis_fix,oasis_ada,sophiah0,sophiah1,sania}: as the functions below return them
step/S/p{i}, t{t}/g{i}, t{t}/hz{a}_{i}, t{t}/z{a}_{i}: float32 inputs of steps alone; P{i}, M{i}
and V{i}: after the last step
stats/N/D/var: exact variance of one probe, an entry; xdiag/K/A, W, expected: XDiag's estimate
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from hutchinson_models import LOSSES

SEED = 20261
rng = np.random.default_rng(SEED)
OUT, META = {}, {"models": {}, "traj": {}, "steps": {}, "stats": {}, "xdiag": {}}

MODELS = {  # kind, shapes, shape of x, of y or classes
    "tanh": ("mlp_tanh_ce", [(4, 3), (4,), (3, 4), (3,)], (6, 3), 3),
    "sigmoid": ("mlp_sigmoid_mse", [(4, 3), (4,), (2, 4), (2,)], (5, 3), (5, 2)),
    "relu": ("mlp_relu_mse", [(5, 3), (5,), (2, 5), (2,)], (6, 3), (6, 2)),
    "conv1": ("conv1d", [(3, 2, 3), (3,), (2, 3), (2,)], (4, 2, 7), (4, 2)),
    "conv2": ("conv2d", [(2, 1, 3, 3), (2,), (2, 2, 2, 2), (2, 8), (2,)], (3, 1, 4, 4), 2),
    "conv3": ("conv3d", [(2, 1, 2, 2, 2), (2,)], (3, 1, 3, 3, 3), (3, 2)),
    "rnn": ("rnn", [(3, 2), (3, 3), (3,), (1, 3), (1,)], (4, 5, 2), (4, 1)),
    "attention": ("attn", [(5, 4), (4,), (4,), (12, 4), (4, 4), (5, 4)], (2, 4), (2, 4)),
    "rosenbrock": ("rosen", [(5,), (3,)], (1,), (1,)),
    "quadratic": ("quad", [(12,)], (12, 12), (12,)),
}


class Model:
    def __init__(self, name):
        kind, shapes, x, y = MODELS[name]
        self.name, self.kind, self.shapes = name, kind, shapes
        self.p = [rng.standard_normal(s) * 0.6 for s in shapes]
        if kind == "attn":
            self.x, self.y = rng.integers(0, 5, x), rng.integers(0, 5, y)
        else:
            self.x = rng.standard_normal(x)
            self.y = rng.integers(0, y, x[0]) if isinstance(y, int) else rng.standard_normal(y)
        if kind == "quad":
            self.x = self.x @ self.x.T / 12 + np.diag(np.linspace(0.1, 2, 12))
        self.sizes = [int(np.prod(s)) for s in shapes]
        self.w = np.concatenate([p.ravel() for p in self.p])

    def loss(self, w):
        P = [a.view(s) for a, s in zip(w.split(self.sizes), self.shapes, strict=True)]
        return LOSSES[self.kind](P, torch.as_tensor(self.x), torch.as_tensor(self.y))

    def at(self, w):
        """Loss, gradient, Hessian."""
        w = torch.as_tensor(w)
        g = torch.func.grad(self.loss)(w).numpy()
        # torch.func.hessian's is wrong by 0.6 for the attention, and not symmetric.
        H = torch.autograd.functional.hessian(self.loss, w).numpy()
        assert np.abs(H - H.T).max() <= 1e-12 * np.abs(H).max()
        return float(self.loss(w)), g, H


def spatial(d, shape, mode, sizes):
    """The mean over what a mode names; d is |D| or D of one tensor."""
    d = d.reshape(shape)
    if d.ndim == 0 or d.size == 0 or mode == "none":
        return d.ravel()
    if mode == "conv":
        axes = tuple(range(2, d.ndim))
    elif mode == "row":
        axes = (d.ndim - 1,) if d.ndim > 1 else ()
    else:
        size = sizes[min(d.ndim, 4) - 1]
        if size > 0:
            flat = d.ravel().copy()
            for i in range(0, flat.size, size):
                flat[i : i + size] = flat[i : i + size].mean()
            return flat
        axes = {1: (), 2: (1,), 3: (2,)}.get(d.ndim, tuple(range(2, d.ndim)))
    mean = d.mean(axis=axes, keepdims=True) if axes else d
    return np.broadcast_to(mean, shape).ravel()


class AdaHessian:
    """Algorithm 1 for flat parameters made of tensors of these shapes."""

    def __init__(self, shapes, c):
        self.shapes, self.c = shapes, c
        self.cuts = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]
        self.m = self.v = 0.0
        self.t = self.refreshes = 0

    def step(self, w, g, z=None, hz=None):
        c = self.c
        self.t += 1
        stale = c.get("stale", "fresh_count")
        if z is not None:
            D = (z * hz).mean(axis=0)
            D = D if c.get("signed") else np.abs(D)
            parts = zip(np.split(D, self.cuts), self.shapes, strict=True)
            self.D = np.concatenate(
                [spatial(d, s, c["mode"], c.get("sizes")) for d, s in parts]
            )
            self.refreshes += 1
        self.m = c["b1"] * self.m + (1 - c["b1"]) * g
        if z is not None or stale == "stale":
            self.v = c["b2"] * self.v + (1 - c["b2"]) * self.D**2
        power = self.refreshes if stale == "fresh_count" else self.t
        m = self.m / (1 - c["b1"] ** self.t)
        root = (np.sqrt(self.v) / np.sqrt(1 - c["b2"] ** power)) ** c["k"]
        step = np.arctan2(m, root) if c.get("update") == "atan2" else m / (root + c["eps"])
        return w - c["lr"] * (step + c["wd"] * w)


BASE = {"lr": 0.05, "b1": 0.9, "b2": 0.99, "eps": 0.01, "wd": 0.02, "k": 1.0, "mode": "conv",
        "npr": 1}  # fmt: skip
CONFIGS = {
    "A": {"lr": 0.15, "b2": 0.999, "eps": 1e-4, "wd": 0.0},
    "B": {"lr": 0.08, "b1": 0.8, "b2": 0.95, "eps": 1e-3, "wd": 0.05, "k": 0.5},
    "C": {"lr": 0.1, "b2": 0.98, "mode": "instr", "sizes": [-1, -1, -1, -1]},
    "D": {"lr": 0.1, "b2": 0.98, "mode": "instr", "sizes": [2, 4, -1, 3]},
    "E": {"mode": "row"},
    "F": {"npr": 3},
    "G": {"signed": True},
    "H1": {"mode": "none", "every": 3, "stale": "stale"},
    "H2": {"mode": "none", "every": 3, "stale": "fresh_step"},
    "H3": {"mode": "none", "every": 3, "stale": "fresh_count"},
    "K0": {"b1": 0.7, "b2": 0.9, "eps": 1e-8, "wd": 0.0, "k": 0.25, "mode": "none", "npr": 2},
    "T": {"update": "atan2"},
}
STEPS = 5


def rademacher(*shape):
    return rng.choice([-1.0, 1.0], shape)


def models():
    for name in MODELS:
        model = Model(name)
        loss, g, H = model.at(model.w)
        h, probe = 1e-5, rng.standard_normal(len(g))
        ends = [model.at(model.w + sign * h * probe)[1] for sign in (1, -1)]
        differences = (ends[0] - ends[1]) / (2 * h)
        assert np.abs(H @ probe - differences).max() <= 1e-7 * np.abs(H).max(), name
        Z = rademacher(4, len(model.w))
        for i, p in enumerate(model.p):
            OUT[f"model/{name}/p{i}"] = p
        fields = {"x": model.x, "y": model.y, "H": H, "grad": g, "Z": Z, "HZ": Z @ H}
        OUT.update({f"model/{name}/{key}": value for key, value in fields.items()})
        META["models"][name] = {
            "kind": model.kind, "nparams": len(model.p), "shapes": model.shapes, "loss": loss
        }  # fmt: skip
        trajectories(model)
        others(model)
        for kind in ("rademacher", "gaussian"):
            off = H**2 - np.diag(np.diag(H) ** 2)
            var = off.sum(1) + (2 * np.diag(H) ** 2 if kind == "gaussian" else 0)
            OUT[f"stats/{name}/{kind}/var"] = var


def trajectories(model):
    for key, change in CONFIGS.items():
        c = {**BASE, **change, "model": model.name, "steps": STEPS, "id": key}
        Z = rademacher(STEPS, c["npr"], len(model.w))
        rule, w, where = AdaHessian(model.shapes, c), model.w, f"traj/{model.name}/{key}"
        for t in range(STEPS):
            _, g, H = model.at(w)
            fresh = t % c.get("every", 1) == 0
            w = rule.step(w, g, *((Z[t], Z[t] @ H) if fresh else ()))
            OUT[f"{where}/P{t + 1}"] = w
        OUT.update({f"{where}/Z": Z, f"{where}/m_end": rule.m, f"{where}/v_end": rule.v})
        META["traj"][f"{model.name}/{key}"] = c


def oasis(model, c, Z0, Z):
    """Row 0 is after the first step, with D0 and eta0."""
    w, b2, alpha = model.w, c["beta2"], c["alpha"]
    _, g, H = model.at(w)
    D = np.mean(Z0 * (Z0 @ H), axis=0)
    eta, theta = c["lr0"], np.inf if c["adaptive"] else None
    before, g_before = w, g
    w = w - eta * g / np.maximum(np.abs(D), alpha)
    W, Ds, etas = [w], [D], [eta]
    for z in Z[:, 0]:
        _, g, H = model.at(w)
        D = b2 * D + (1 - b2) * z * (z @ H)
        B = np.maximum(np.abs(D), alpha)
        if c["adaptive"]:
            dw, dg = w - before, g - g_before
            local = np.sqrt((B * dw * dw).sum()) / (2 * np.sqrt((dg * dg / B).sum()))
            new = min(np.sqrt(1 + theta) * eta, local)
            eta, theta = new, new / eta
        before, g_before = w, g
        w = w - eta * g / B
        W.append(w), Ds.append(D), etas.append(eta)
    return {"Z0": Z0, "Z": Z, "W": W, "D": Ds, "eta": etas}


def sophia(model, c, Z):
    w, m, h, rows = model.w, 0.0, 0.0, []
    for t in range(len(Z)):
        _, g, H = model.at(w)
        m = c["b1"] * m + (1 - c["b1"]) * g
        if t % c["every"] == 0:
            h = c["b2"] * h + (1 - c["b2"]) * Z[t, 0] * (Z[t, 0] @ H)
        w = w - c["lr"] * c["wd"] * w
        w = w - c["lr"] * np.clip(m / np.maximum(c["gamma"] * h, c["eps"]), -1, 1)
        rows.append((w, m, h))
    W, m, h = map(np.array, zip(*rows, strict=True))
    return {"Z": Z, "W": W, "m": m, "h": h}


def sania(model, c, Z0, Z):
    w, rows, numbers = model.w, [], []
    D = np.mean(Z0 * (Z0 @ model.at(w)[2]), axis=0)
    for t in range(len(Z)):
        loss, g, H = model.at(w)
        D = c["beta2"] * D + (1 - c["beta2"]) * Z[t, 0] * (Z[t, 0] @ H)
        B = np.maximum(np.abs(D), c["alpha"])
        ups = 2 * (loss - c["fstar"]) / (g * g / B).sum()
        lam = 1 - np.sqrt(1 - ups) if ups <= 1 else 1.0
        w = w - lam * g / B
        rows.append(w), numbers.append((loss, ups, lam))
    return {"Z0": Z0, "Z": Z, "W": rows, "loss_ups_lam": numbers}


def others(model):
    if model.name not in ("sigmoid", "conv2", "quadratic"):
        return
    n = len(model.w)
    draw = lambda: (rademacher(4, n), rademacher(STEPS, 1, n))  # noqa: E731
    cases = {}
    for key, adaptive in (("oasis_fix", False), ("oasis_ada", True)):
        c = {"alg": "oasis", "adaptive": adaptive, "lr0": 0.02, "beta2": 0.95, "alpha": 0.05}
        cases[key] = c, oasis(model, c, *draw())
    for key, gamma, wd, every in (("sophiah0", 5.0, 0.0, 1), ("sophiah1", 0.5, 0.1, 2)):
        c = {"alg": "sophiah", "lr": 0.03, "b1": 0.9, "b2": 0.95, "gamma": gamma}
        c |= {"eps": 1e-12, "wd": wd, "every": every}
        cases[key] = c, sophia(model, c, draw()[1])
    if model.name != "quadratic":  # its loss is negative
        c = {"alg": "sania_hutch", "beta2": 0.95, "alpha": 0.05, "fstar": 0.0}
        cases["sania"] = c, sania(model, c, *draw())
    for key, (c, found) in cases.items():
        META["traj"][f"{model.name}/{key}"] = {**c, "model": model.name, "steps": STEPS}
        for field, value in found.items():
            OUT[f"traj/{model.name}/{key}/{field}"] = np.array(value)


SHAPES = [(), (5,), (65,), (9, 7), (4, 3, 3), (4, 2, 3, 3), (0,), (2, 3, 2, 2, 2), (130,)]


def steps():
    for key, config in (("s1", "A"), ("s2", "B"), ("s3", "F"), ("s4", "G"), ("s5", "D")):
        c = {**BASE, **CONFIGS[config], "id": key, "steps": 3, "shapes": SHAPES}
        rule = AdaHessian(SHAPES, c)
        p = [rng.standard_normal(s).astype(np.float32) for s in SHAPES]
        flat = lambda parts: np.concatenate([np.float64(x).ravel() for x in parts])  # noqa: E731
        w = flat(p)
        for i, x in enumerate(p):
            OUT[f"step/{key}/p{i}"] = x
        for t in range(3):
            g = [np.float32(rng.standard_normal(s)) for s in SHAPES]
            hz = [[np.float32(rng.standard_normal(s)) for s in SHAPES] for _ in range(c["npr"])]
            z = [[rng.choice([-1, 1], s).astype(np.int8) for s in SHAPES] for _ in hz]
            for i in range(len(SHAPES)):
                OUT[f"step/{key}/t{t}/g{i}"] = g[i]
                for a in range(c["npr"]):
                    OUT[f"step/{key}/t{t}/hz{a}_{i}"] = hz[a][i]
                    OUT[f"step/{key}/t{t}/z{a}_{i}"] = z[a][i]
            w = rule.step(w, flat(g), np.array([*map(flat, z)]), np.array([*map(flat, hz)]))
        for name, flat_one in (("P", w), ("M", rule.m), ("V", rule.v)):
            for i, part in enumerate(np.split(flat_one, rule.cuts)):
                OUT[f"step/{key}/{name}{i}"] = part.reshape(SHAPES[i])
        META["steps"][key] = c


def xdiag(A, W):
    """Leave-one-out, each by its own factorisation: Epperly, Tropp, Webber, section 3."""
    n, m = W.shape
    total = np.zeros(n)
    for i in range(m):
        rest = np.delete(W, i, 1)
        U, s, _ = np.linalg.svd(A @ rest, full_matrices=False)
        Q = U[:, s > 1e-13 * s[0]]
        low_rank = Q @ (Q.T @ A)
        w = W[:, i]
        total += np.diag(low_rank) + w * ((A - low_rank) @ w)
    return total / m


def matrices():
    n, m = 20, 6
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    spectra = {
        "lowrank": np.r_[3.0, 2.0, -1.0, 0.5, np.zeros(n - 4)],
        "decay": 0.5 ** np.arange(n),
        "indefinite": np.linspace(-1, 2, n),
    }
    for key, spectrum in spectra.items():
        A = (Q * spectrum) @ Q.T
        A = (A + A.T) / 2
        W = rademacher(n, m)
        expected = np.diag(A) if key == "lowrank" else xdiag(A, W)
        OUT.update(
            {f"xdiag/{key}/A": A, f"xdiag/{key}/W": W, f"xdiag/{key}/expected": expected}
        )
        META["xdiag"][key] = {"n": n}


def main():
    models()
    steps()
    matrices()
    OUT["meta_json"] = np.array(json.dumps(META))
    path = Path(__file__).with_name("hutchinson.npz")
    np.savez_compressed(path, **OUT)
    print(f"{len(OUT)} arrays, {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
