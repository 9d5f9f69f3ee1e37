"""What quadratic_ot and sparsity_constrained_ot take, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import curvkern
from curvkern import ot
from sparse_plan_problems import FUNCTIONS, every_function, problem


@every_function
def test_layouts_and_kinds(name: str) -> None:
    """R23, R24, R28, R29, R36"""
    a, b, C = problem(6, 8)
    expected = FUNCTIONS[name](a, b, C, 0.4).plan
    for moved in (C.T.contiguous().T, C.repeat_interleave(2, 1)[:, ::2],
                  torch.imag(torch.complex(C, -C).conj())):  # fmt: skip
        assert torch.equal(FUNCTIONS[name](a, b, moved, 0.4).plan, expected)
    arrays = a.numpy()[::-1].copy()[::-1], b.numpy().astype(">f8"), np.asfortranarray(C.numpy())
    assert torch.equal(FUNCTIONS[name](*arrays, 0.4).plan, expected)
    parameter = torch.nn.Parameter(C)
    FUNCTIONS[name](a, b, parameter, torch.tensor(0.4)).value.backward()
    assert_close(parameter.grad, expected, rtol=0, atol=1e-7)
    uniform = torch.ones(3, 1).expand(3, 4)
    assert FUNCTIONS[name](None, None, uniform, 1.0).converged
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(FUNCTIONS[name](a, b, C, 0.4).plan, expected)
    half = FUNCTIONS[name](None, None, C.half(), 0.4)
    assert half.plan.dtype == torch.float16
    assert half.value.isfinite()


a3, c34 = torch.ones(3).double() / 3, torch.zeros(3, 4).double()
NAN, INF = torch.nan, torch.inf


@every_function
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"C": c34.index_fill(0, torch.tensor(1), NAN)}, ValueError, "C contains nan"),
        ({"C": c34.index_fill(0, torch.tensor(1), INF)}, ValueError, "infeasible, row 1 has"),
        ({"C": c34.index_fill(1, torch.tensor(2), INF)}, ValueError, "infeasible, column 2"),
        ({"C": c34 + INF}, ValueError, "infeasible, all of C"),
        ({"C": c34 - INF}, ValueError, "C contains -inf"),
        ({"a": a3 * torch.tensor([1, -1, 3.0])}, ValueError, "a must be non-negative, got -0"),
        ({"a": a3 * NAN}, ValueError, "a contains nan"),
        ({"a": a3 * INF}, ValueError, "a must be finite"),
        ({"a": 2 * a3}, ValueError, "same mass, got 2 and 1"),
        ({"a": 0 * a3, "b": torch.zeros(4).double()}, ValueError, "mass must be positive"),
        ({"a": a3[:2]}, ValueError, r"a has shape \(2,\) but C has shape \(3, 4\)"),
        ({"a": a3[:, None]}, ValueError, r"a has shape \(3, 1\)"),
        ({"b": a3}, ValueError, r"b has shape \(3,\) .*expected \(4,\)"),
        ({"C": c34[0]}, ValueError, r"C must have shape \(n, m\) or \(B, n, m\), got \(4,\)"),
        ({"C": c34[:0]}, ValueError, r"C of shape \(0, 4\) is empty"),
        ({"C": c34.long()}, TypeError, "C must be float64.* got torch.int64"),
        ({"C": c34.numpy().astype(int)}, TypeError, "C must be real and floating, got int64"),
        ({"C": c34 > 0}, TypeError, "C must be float64.* got torch.bool"),
        ({"C": c34 + 1j}, TypeError, "C must be float64.* got torch.complex128"),
        ({"C": c34.to_sparse()}, TypeError, "C has layout torch.sparse_coo"),
        ({"C": None}, TypeError, "C must be a tensor or a NumPy array, got NoneType"),
        ({"C": "1"}, TypeError, "C must be a tensor or a NumPy array, got str"),
        ({"a": a3.float()}, TypeError, "a has dtype torch.float32 but C has torch.float64"),
        ({"a": object()}, TypeError, "a must be a tensor or a NumPy array, got object"),
        ({"a": a3.to("meta")}, NotImplementedError, "a is a meta tensor"),
        ({"C": c34.to("meta")}, NotImplementedError, "C is a meta tensor"),
        ({"gamma": 0}, ValueError, "gamma must be positive and finite, got 0"),
        ({"gamma": -1.0}, ValueError, "gamma must be positive and finite, got -1"),
        ({"gamma": NAN}, ValueError, "gamma must be positive and finite, got nan"),
        ({"gamma": INF}, ValueError, "gamma must be positive and finite, got inf"),
        ({"gamma": "0.1"}, TypeError, "gamma must be a number, got str"),
        ({"gamma": None}, TypeError, "gamma must be a number, got NoneType"),
        ({"gamma": True}, TypeError, "gamma must be a number, got bool"),
        ({"tol": 0.0}, ValueError, "tol must be positive"),
        ({"max_iter": -1}, ValueError, "max_iter must be at least 1, got -1"),
        ({"max_iter": 1.5}, TypeError, "max_iter must be an integer, got float"),
        ({"callback": 3}, TypeError, "callback must be callable, got int"),
    ],
)  # fmt: skip
def test_refusals(
    name: str, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {
        "a": a3,
        "b": torch.full((4,), 0.25).double(),
        "C": c34,
        "gamma": 1.0,
        **change,
    }
    a, b, C, gamma = (arguments.pop(key) for key in ("a", "b", "C", "gamma"))
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        FUNCTIONS[name](a, b, C, gamma, **arguments)


def test_refused_words_and_sizes() -> None:
    with pytest.raises(TypeError, match="max_itr"):
        ot.quadratic_ot(a3, None, c34, 1.0, max_itr=3)  # type: ignore[call-arg]
    with pytest.raises(
        ValueError, match="sparsity_constrained_ot: k must be at least 1, got 0"
    ):
        ot.sparsity_constrained_ot(None, None, c34, 1.0, 0)
    with pytest.raises(
        MemoryError, match=r"quadratic_ot: .*\(1048576, 1099511627776\) is too la"
    ):
        ot.quadratic_ot(
            None, torch.ones(1).expand(2**40), torch.ones(1).expand(2**20, 2**40), 1.0
        )


def test_batch_is_refused_before_any_work() -> None:
    a, b, C = (t.expand(3, *t.shape).clone() for t in problem(4, 5))
    a[1, 2] = -1
    seen: list[int] = []
    with pytest.raises(ValueError, match=r"a must be non-negative, got -1 at 2, in problem 1$"):
        ot.quadratic_ot(a, b, C, 1.0, callback=lambda k, _: seen.append(k))
    assert not seen
    with pytest.raises(ValueError, match=r"b has shape \(2, 5\).*expected \(5,\) or \(3, 5\)"):
        ot.quadratic_ot(None, b[:2], C, 1.0)
    with pytest.warns(curvkern.ConvergenceWarning, match="in 3 of 3 problems"):
        ot.quadratic_ot(None, b, C, 1e-3, max_iter=1)
