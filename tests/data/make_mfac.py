"""Make mfac.npz, the truth for curvkern.fisher: `python tests/data/make_mfac.py`.

F = damping I + (1/n) sum g g', of gradients that float32 holds exactly. Its inverse is a solve
with the dense matrix in 100 digits; that by Woodbury's formula, in the same digits, has to
agree to 40. All is rounded once, to float64. Nothing is shared with curvkern.

Fields of every problem: G (rows, d) oldest first, damping, n, V (k, d), ihvp, diagonal,
inverse of the first eight rows and columns, logdet, condition, block (0: none).
Rings: sequence, capacity, normalize, probe, and after every push ihvp and newest = F^-1 times
the gradient pushed. Removal: n stays. Pruning: w, order (by saliency w^2 / (2 [F^-1]_ii)),
saliency, k, simultaneous, joint, greedy and greedy_order.
"""

from pathlib import Path

import numpy as np
from flint import arb, arb_mat, ctx

ctx.prec = 340  # bits
SEED = 20250


def exact(array):
    array = np.atleast_2d(np.asarray(array, np.float64))
    return arb_mat([[arb(float(x)) for x in row] for row in array])


def rounded(matrix):
    return np.array(
        [
            [float(matrix[i, j].mid()) for j in range(matrix.ncols())]
            for i in range(matrix.nrows())
        ]
    )


def inverse(G, damping, n):
    """F^-1 of (c, d) gradients as an arb_mat, by both formulas."""
    d = G.shape[1]
    G, damping = exact(G), arb(damping)
    identity = arb_mat(d, d, [arb(int(i == j)) for i in range(d) for j in range(d)])
    F = identity * damping + G.transpose() * G * (1 / arb(n))
    dense = F.solve(identity)
    c = G.nrows()
    small = arb_mat(c, c, [arb(int(i == j)) for i in range(c) for j in range(c)])
    K = small * (damping * n) + G * G.transpose()
    woodbury = (identity - G.transpose() * K.solve(G)) * (1 / damping)
    pairs = zip(dense.entries(), woodbury.entries(), strict=True)
    apart = max(abs(float((x - y).mid())) for x, y in pairs)
    assert apart < 1e-40 / float(damping), apart
    return dense, F


def gradients(kind, rows, d, rng):
    G = rng.standard_normal((rows, d)) * np.exp(rng.standard_normal(d))
    if kind == "neardup":
        G = G[:1] + 1e-3 * G
    elif kind == "dup":
        G[rows // 2 :] = G[: rows - rows // 2]
    elif kind == "zero":
        G[1::3] = 0
    elif kind == "scales":
        G *= 10.0 ** rng.integers(-3, 3, (rows, 1))
    return G.astype(np.float32)


def static(kind, rows, d, damping, rng, n=None, block=0):
    n = n or rows
    G = gradients(kind, rows, d, rng)
    V = np.stack([rng.standard_normal(d), G[-1], rng.standard_normal(rows) @ G])
    V = V.astype(np.float32)
    size = block or d
    out = {"G": G, "damping": damping, "n": n, "V": V, "block": block}
    ihvp, diagonal, logdet = [], [], arb(0)
    full = np.zeros((d, d))
    for start in range(0, d, size):
        at = slice(start, start + size)
        inv, F = inverse(G[:, at], damping, n)
        ihvp.append(rounded(exact(V[:, at]) * inv))
        full[at, at] = rounded(inv)
        diagonal.append(np.diag(full[at, at]))
        logdet += F.det().log()
    F = damping * np.eye(d) + G.T.astype(float) @ G / n
    corner = full[:8, :8]
    return out | {
        "ihvp": np.concatenate(ihvp, 1),
        "diagonal": np.concatenate(diagonal),
        "inverse": corner,
        "logdet": float(logdet.mid()),
        "condition": np.linalg.cond(F),
    }


def ring(kind, capacity, pushes, d, damping, normalize, rng):
    sequence = gradients(kind, pushes, d, rng)
    probe = rng.standard_normal(d).astype(np.float32)
    ihvp, newest, condition = [], [], 0.0
    for t in range(pushes):
        G = sequence[max(0, t + 1 - capacity) : t + 1]
        n = capacity if normalize == "capacity" else len(G)
        inv, _ = inverse(G, damping, n)
        both = rounded(exact(np.stack([probe, sequence[t]])) * inv)
        ihvp.append(both[0])
        newest.append(both[1])
        F = damping * np.eye(d) + G.T.astype(float) @ G / n
        condition = max(condition, np.linalg.cond(F))
    return {
        "sequence": sequence,
        "probe": probe,
        "capacity": capacity,
        "normalize": normalize,
        "damping": damping,
        "ihvp": np.array(ihvp),
        "newest": np.array(newest),
        "condition": condition,
    }


def removal(rows, d, damping, drop, rng):
    G = gradients("gauss", rows, d, rng)
    v = rng.standard_normal(d).astype(np.float32)
    inv, F = inverse(np.delete(G, drop, 0), damping, rows)
    condition = np.linalg.cond(rounded(F))
    ihvp = rounded(exact(v) * inv)[0]
    return {"G": G, "v": v, "n": rows, "damping": damping, "drop": drop} | {
        "ihvp": ihvp,
        "condition": condition,
    }


def prune(rows, d, damping, k, rng):
    """The three modes; joint is the solution of the block, greedy conditions step by step."""
    G = gradients("gauss", rows, d, rng)
    w = rng.standard_normal(d).astype(np.float32)
    inv, F = inverse(G, damping, rows)
    diagonal = [inv[i, i] for i in range(d)]
    exact_w = [arb(float(x)) for x in w]
    saliency = [x * x / (2 * s) for x, s in zip(exact_w, diagonal, strict=True)]
    order = np.argsort([float(s.mid()) for s in saliency], kind="stable")
    S = [int(i) for i in order[:k]]
    columns = arb_mat([[inv[i, j] for j in S] for i in range(d)])

    def updated(multipliers, zeros):
        step = rounded(columns * multipliers)[:, 0]
        # The sum is taken in 100 digits, then rounded.
        change = columns * multipliers
        out = np.array([float((exact_w[i] - change[i, 0]).mid()) for i in range(d)])
        assert np.isfinite(step).all()
        out[zeros] = 0
        return out

    each = arb_mat([[exact_w[i] / diagonal[i]] for i in S])
    block = arb_mat([[inv[i, j] for j in S] for i in S])
    together = block.solve(arb_mat([[exact_w[i]] for i in S]))
    loss = sum((exact_w[i] * together[r, 0] for r, i in enumerate(S)), arb(0)) / 2

    current, H, gone = list(exact_w), inv, []
    for _ in range(k):
        free = [i for i in range(d) if i not in gone]
        i = min(free, key=lambda i: float((current[i] ** 2 / H[i, i]).mid()))
        row = arb_mat([[H[i, j] for j in range(d)]])
        share = current[i] / H[i, i]
        current = [x - share * H[i, j] for j, x in enumerate(current)]
        # What is gone stays zero: F^-1 of the weights that are left.
        H = H - row.transpose() * row * (1 / H[i, i])
        gone.append(i)
        for j in gone:
            current[j] = arb(0)
            for l in range(d):
                H[j, l] = H[l, j] = arb(0)
    return {
        "G": G,
        "w": w,
        "damping": damping,
        "k": k,
        "order": order,
        "saliency": np.array([float(s.mid()) for s in saliency]),
        "simultaneous": updated(each, S),
        "joint": updated(together, S),
        "joint_loss": float(loss.mid()),
        "greedy": np.array([float(x.mid()) for x in current]),
        "greedy_order": gone,
        "condition": np.linalg.cond(rounded(F)),
    }


def main():
    rng = np.random.default_rng(SEED)
    problems = {
        "static/full": static("gauss", 7, 50, 1e-2, rng),
        "static/partial": static("gauss", 4, 40, 1e-3, rng, n=9),
        "static/near duplicates": static("neardup", 11, 70, 1e-4, rng),
        "static/duplicates": static("dup", 8, 33, 1e-5, rng),
        "static/zero rows": static("zero", 9, 45, 1e-3, rng),
        "static/scales": static("scales", 10, 60, 1e-3, rng),
        "static/tiny damping": static("gauss", 12, 64, 1e-8, rng),
        "static/more rows than columns": static("gauss", 25, 17, 1e-3, rng),
        "static/one row": static("gauss", 1, 20, 1e-2, rng),
        "static/one column": static("gauss", 5, 1, 1e-2, rng),
        "static/blocks": static("gauss", 10, 70, 1e-4, rng, block=16),
        "static/small blocks": static("gauss", 30, 40, 1e-3, rng, block=5),
        "ring/capacity": ring("gauss", 5, 13, 40, 1e-3, "capacity", rng),
        "ring/filled": ring("gauss", 5, 13, 40, 1e-3, "filled", rng),
        "ring/near duplicates": ring("neardup", 6, 15, 32, 1e-4, "capacity", rng),
        "ring/one": ring("gauss", 1, 4, 12, 1e-2, "filled", rng),
        "removal/one": removal(9, 40, 1e-3, [4], rng),
        "removal/three": removal(8, 30, 1e-4, [0, 3, 7], rng),
        "prune/few": prune(25, 24, 1e-3, 8, rng),
        "prune/most": prune(10, 30, 1e-4, 24, rng),
    }
    fields = {
        f"{name}/{key}": value for name, p in problems.items() for key, value in p.items()
    }
    np.savez_compressed(Path(__file__).with_name("mfac.npz"), **fields)
    for name, problem in problems.items():
        print(f"{name:32} condition {problem['condition']:.1e}")


if __name__ == "__main__":
    main()
