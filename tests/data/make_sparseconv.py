"""Writes tests/data/sparseconv.npz: convolutions with sparse weights, and their gradients.

    python tests/data/make_sparseconv.py

Inputs are float32. Results and gradients are those of torch's dense convolutions in float64, by
its automatic differentiation. The index lists the cases: "pointwise" has a matrix in compressed
rows, by blocks where ``block`` is not (1, 1); "depthwise" and "first" have filters and padding
(left, right, top, bottom); "net" is a small MobileNet with normalisation in evaluation mode,
whose weight gradients are those of the weights before folding, where they are not zero.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": torch.relu,
    "relu6": lambda z: z.clamp(0, 6),
    "silu": lambda z: z * torch.sigmoid(z),
    "hardswish": lambda z: z * (z + 3).clamp(0, 6) / 6,
}
#: name, (B, K, N, H, W), sparsity, block, activation, bias, residual
POINTWISE: list[tuple[Any, ...]] = [
    ("plain", (1, 32, 48, 12, 12), 0.9, (1, 1), "relu", True, False),
    ("odd", (2, 19, 23, 7, 7), 0.8, (1, 1), "none", False, False),
    ("pixel", (1, 80, 20, 1, 1), 0.7, (1, 1), "silu", True, False),
    ("one row", (3, 11, 1, 5, 4), 0.5, (1, 1), "relu6", False, False),
    ("skewed", (1, 40, 25, 6, 5), "skewed", (1, 1), "relu", True, True),
    ("empty", (1, 7, 6, 4, 4), 1.0, (1, 1), "silu", True, False),
    ("dense", (1, 13, 12, 5, 6), 0.0, (1, 1), "relu6", True, False),
    ("stored zeros", (1, 24, 24, 5, 5), 0.7, (1, 1), "hardswish", True, False),
    ("residual", (1, 16, 12, 6, 6), 0.66, (1, 1), "hardswish", True, True),
    ("2x1", (2, 24, 32, 6, 7), 0.8, (2, 1), "relu", True, False),
    ("4x1", (2, 24, 32, 6, 7), 0.8, (4, 1), "none", True, True),
    ("16x1", (2, 24, 32, 6, 7), 0.85, (16, 1), "silu", False, False),
    ("2x3", (1, 24, 16, 5, 3), 0.7, (2, 3), "relu6", True, False),
]
#: name, (B, C, N, H, W), kernel, stride, padding, dilation, activation, bias
WINDOWS: list[tuple[Any, ...]] = [
    ("depthwise 3", (1, 7, 7, 11, 9), 3, 1, (1, 1, 1, 1), 1, "relu", True),
    ("depthwise 3 stride 2", (2, 7, 7, 11, 9), 3, 2, (1, 1, 1, 1), 1, "none", False),
    ("depthwise 5", (1, 7, 7, 11, 9), 5, 1, (2, 2, 2, 2), 1, "silu", True),
    ("depthwise 5 stride 2", (1, 7, 7, 11, 9), 5, 2, (2, 2, 2, 2), 1, "relu6", True),
    ("depthwise SAME", (1, 5, 5, 12, 10), 3, 2, (0, 1, 0, 1), 1, "hardswish", True),
    ("depthwise dilated", (1, 4, 4, 12, 10), 3, 1, (2, 1, 0, 3), 2, "relu", True),
    ("depthwise multiplier", (1, 4, 12, 6, 5), 3, 1, (1, 1, 1, 1), 1, "none", True),
    ("first", (1, 3, 10, 17, 20), 3, 2, (1, 1, 1, 1), 1, "relu6", True),
    ("first SAME", (2, 3, 8, 16, 18), 3, 2, (0, 1, 0, 1), 1, "hardswish", False),
]
NET = [
    ("conv", 3, 8, 2, "relu6"),
    *[("dw", 8, 3, 1, "relu6"), ("pw", 8, 16, "relu6")],
    *[("dw", 16, 3, 2, "hardswish"), ("pw", 16, 32, "silu"), ("pw", 32, 16, "none")],
    *[("dw", 16, 5, 1, "relu"), ("pw", 16, 48, "relu6")],
]
EPS = 1e-5


def positive(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.uniform(0.5, 1.5, n)


def matrix(
    generator: np.random.Generator, rows: int, columns: int, sparsity: Any
) -> np.ndarray:
    """Which blocks there are."""
    if sparsity == "skewed":  # a full row, empty ones, and what is between
        kept = generator.random((rows, columns)) < generator.random((rows, 1)) ** 4
        kept[3], kept[4], kept[-1] = True, False, False
        return kept
    order = generator.random((rows, columns))
    return order >= np.quantile(order, sparsity) if 0 < sparsity < 1 else order >= sparsity


def differentiated(y: Tensor, gy: Tensor, **inputs: Tensor | None) -> dict[str, np.ndarray]:
    there = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    grads = torch.autograd.grad(y, list(there.values()), gy)
    found = {f"g{name}": grad.numpy() for name, grad in zip(there, grads, strict=True)}
    return {"y": y.detach().numpy(), **found}


def double(array: np.ndarray | None) -> Tensor | None:
    if array is None:
        return None
    return torch.from_numpy(array.astype(np.float64)).requires_grad_()


def pointwise(generator: np.random.Generator, case: tuple[Any, ...]) -> tuple[dict, dict]:
    name, (B, K, N, H, W), sparsity, (r, c), act, has_bias, has_residual = case
    kept = matrix(generator, N // r, K // c, sparsity)
    row, col = kept.nonzero()
    values = generator.standard_normal((len(row), r, c)).astype(np.float32)
    if name == "stored zeros":
        values[::3] = 0
    arrays = {
        "x": generator.standard_normal((B, K, H, W)).astype(np.float32),
        "crow": np.concatenate([[0], kept.sum(1).cumsum()]).astype(np.int64),
        "col": col.astype(np.int64),
        "values": values.reshape(-1) if r * c == 1 else values,
        "gy": generator.standard_normal((B, N, H, W)).astype(np.float32),
    }
    if has_bias:
        arrays["bias"] = generator.standard_normal(N).astype(np.float32)
    if has_residual:
        arrays["residual"] = generator.standard_normal((B, N, H, W)).astype(np.float32)
    inputs = {k: double(arrays.get(k)) for k in ("x", "values", "bias", "residual")}
    dense = torch.zeros(N // r, K // c, r, c, dtype=torch.float64)
    dense = dense.index_put(
        (torch.from_numpy(row), torch.from_numpy(col)), inputs["values"].reshape(-1, r, c)
    )
    weight = dense.transpose(1, 2).reshape(N, K, 1, 1)
    z = F.conv2d(inputs["x"], weight, inputs["bias"])
    if has_residual:
        z = z + inputs["residual"]
    arrays |= differentiated(
        ACTIVATIONS[act](z), torch.from_numpy(arrays["gy"]).double(), **inputs
    )
    return {"op": "pointwise", "name": name, "block": [r, c], "act": act, "N": N}, arrays


def windowed(generator: np.random.Generator, case: tuple[Any, ...]) -> tuple[dict, dict]:
    name, (B, C, N, H, W), k, stride, padding, dilation, act, has_bias = case
    op = name.split()[0]
    groups = C if op == "depthwise" else 1
    arrays = {
        "x": generator.standard_normal((B, C, H, W)).astype(np.float32),
        "weight": generator.standard_normal((N, C // groups, k, k)).astype(np.float32),
    }
    if has_bias:
        arrays["bias"] = generator.standard_normal(N).astype(np.float32)
    inputs = {key: double(arrays.get(key)) for key in ("x", "weight", "bias")}
    padded = F.pad(inputs["x"], padding)
    z = F.conv2d(padded, inputs["weight"], inputs["bias"], stride, 0, dilation, groups)
    arrays["gy"] = generator.standard_normal(tuple(z.shape)).astype(np.float32)
    arrays |= differentiated(
        ACTIVATIONS[act](z), torch.from_numpy(arrays["gy"]).double(), **inputs
    )
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "act": act}
    return {"op": op, "name": name, **settings}, arrays


def network(generator: np.random.Generator) -> tuple[dict, dict]:
    arrays: dict[str, np.ndarray] = {"x": generator.standard_normal((2, 3, 24, 20))}
    for i, (kind, *sizes) in enumerate(NET):
        n = sizes[0] if kind == "dw" else sizes[1]
        shape = {
            "conv": (n, sizes[0], 3, 3),
            "dw": (n, 1, sizes[1], sizes[1]),
            "pw": (n, sizes[0], 1, 1),
        }[kind]
        weight = generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        if kind == "pw":
            weight *= 2 * matrix(generator, *shape[:2], 0.8)[:, :, None, None]
        arrays[f"{i}.weight"] = weight
        for key, make in (("gamma", positive), ("var", positive)):
            arrays[f"{i}.{key}"] = make(generator, n)
        for key in ("beta", "mean"):
            arrays[f"{i}.{key}"] = 0.3 * generator.standard_normal(n)
    arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
    inputs = {key: double(array) for key, array in arrays.items()}
    y = inputs["x"]
    for i, (kind, *sizes) in enumerate(NET):
        stride = {"conv": 2, "dw": 2, "pw": 0}[kind]
        k = inputs[f"{i}.weight"].shape[2]
        groups = sizes[0] if kind == "dw" else 1
        y = F.conv2d(
            y, inputs[f"{i}.weight"], None, sizes[stride] if stride else 1, k // 2, 1, groups
        )
        scale = inputs[f"{i}.gamma"] / torch.sqrt(inputs[f"{i}.var"] + EPS)
        y = (y - inputs[f"{i}.mean"][:, None, None]) * scale[:, None, None]
        y = ACTIVATIONS[sizes[-1]](y + inputs[f"{i}.beta"][:, None, None])
    y = y.mean((2, 3))
    arrays["gy"] = generator.standard_normal(tuple(y.shape)).astype(np.float32)
    wanted = {"x": inputs["x"]}
    wanted |= {f"{i}.weight": inputs[f"{i}.weight"] for i in range(len(NET))}
    arrays |= differentiated(y, torch.from_numpy(arrays["gy"]).double(), **wanted)
    for i, (kind, *_) in enumerate(NET):
        grad = arrays.pop(f"g{i}.weight")
        if kind == "pw":
            arrays[f"{i}.gvalues"] = grad[arrays[f"{i}.weight"] != 0]
    return {"op": "net", "name": "net", "cfg": NET}, arrays


def main() -> None:
    generator = np.random.default_rng(0)
    cases = [pointwise(generator, case) for case in POINTWISE]
    cases += [windowed(generator, case) for case in WINDOWS]
    cases.append(network(generator))
    arrays = {f"{meta['name']}.{k}": a for meta, found in cases for k, a in found.items()}
    index = json.dumps([meta for meta, _ in cases])
    np.savez_compressed(Path(__file__).with_name("sparseconv.npz"), index=index, **arrays)


if __name__ == "__main__":
    main()
