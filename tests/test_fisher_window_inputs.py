"""What SlidingWindowFisher takes, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern.fisher import SlidingWindowFisher
from fisher_windows import WIDE, dense, pushed

# Forms of inputs ------------------------------------------------------------------------------


def test_forms_of_vectors() -> None:
    fisher = pushed(5)
    v = torch.randn(40, dtype=WIDE)
    wanted = fisher.ihvp(v)
    padded = torch.full((40, 3), math.nan, dtype=WIDE)
    padded[:, 1] = v
    assert_close(fisher.ihvp(padded[:, 1]), wanted, rtol=0, atol=0)
    negated = torch.complex(torch.zeros_like(v), -v).conj().imag  # a negative-bit view of v
    assert negated.is_neg()
    assert_close(fisher.ihvp(negated), wanted, rtol=0, atol=0)
    assert_close(fisher.ihvp(v.expand(3, 40)), wanted.expand(3, 40), rtol=0, atol=0)
    backwards = v.numpy()[::-1].copy()[::-1]
    result = fisher.ihvp(backwards)
    assert isinstance(result, np.ndarray)
    assert_close(torch.from_numpy(result), wanted, rtol=0, atol=0)
    out = torch.empty(40, dtype=WIDE)
    assert fisher.ihvp(v, out=out) is out
    assert_close(out, wanted, rtol=0, atol=0)
    swapped = v.numpy().astype(">f8")
    swapped.flags.writeable = False
    assert_close(torch.from_numpy(fisher.ihvp(swapped)), wanted, rtol=0, atol=0)
    for half in (torch.float16, torch.bfloat16):
        found = fisher.ihvp(v.to(half) * 1e-3)
        assert found.dtype is half
        assert torch.isfinite(found).all()
    x, info = fisher.ihvp(v.expand(3, 40), return_info=True)
    assert x.shape == (3, 40)
    assert info["residual"].shape == (3,)
    assert (info["residual"] < 1e-12).all()


def test_as_linear_operator() -> None:
    fisher = pushed(5)
    operator = fisher.as_linear_operator()
    x = np.random.default_rng(0).standard_normal((40, 3))
    inverse = np.linalg.inv(dense(fisher._window[fisher._order], 6, 1e-3).numpy())
    np.testing.assert_allclose(operator @ x, inverse @ x, rtol=1e-10)
    np.testing.assert_allclose(operator.T @ x[:, 0], inverse @ x[:, 0], rtol=1e-10)


def into(out: Tensor, requires_grad: bool = False) -> Any:
    return pushed(1).ihvp(torch.zeros(40, requires_grad=requires_grad), out=out)


REFUSED = [
    (ValueError, "d must be at least 1, got 0", lambda: SlidingWindowFisher(0, 1, 1.0)),
    (ValueError, "m must be at least 1, got -2", lambda: SlidingWindowFisher(1, -2, 1.0)),
    (TypeError, "m must be an integer", lambda: SlidingWindowFisher(1, 2.0, 1.0)),  # type: ignore[arg-type]
    (ValueError, "damping must be positive", lambda: SlidingWindowFisher(1, 1, 0.0)),
    (ValueError, "damping must be positive", lambda: SlidingWindowFisher(1, 1, math.nan)),
    (TypeError, "damping must be a real", lambda: SlidingWindowFisher(1, 1, "1")),  # type: ignore[arg-type]
    (TypeError, "dtype must be", lambda: SlidingWindowFisher(1, 1, 1.0, dtype=torch.float16)),
    (ValueError, "capacity, filled", lambda: SlidingWindowFisher(1, 1, 1.0, normalize="full")),
    (MemoryError, "too large", lambda: SlidingWindowFisher(2**62, 2**10, 1.0)),
    (MemoryError, "too large", lambda: SlidingWindowFisher(10**13, 1024, 1.0)),
    (ValueError, r"\(3,\), expected \(40,\)", lambda: pushed(1).push(torch.zeros(3))),
    (ValueError, r"\(3,\), expected \(40,\)", lambda: pushed(1).ihvp(torch.zeros(3))),
    (ValueError, r"expected \(40,\)", lambda: pushed(1).push(torch.zeros(2, 40))),
    (TypeError, "complex64", lambda: pushed(1).ihvp(torch.zeros(40, dtype=torch.complex64))),
    (TypeError, "int64", lambda: pushed(1).push(torch.zeros(40, dtype=torch.int64))),
    (TypeError, "bool", lambda: pushed(1).push(torch.zeros(40, dtype=torch.bool))),
    (TypeError, "layout", lambda: pushed(1).push(torch.zeros(40).to_sparse())),
    (TypeError, "list", lambda: pushed(1).push([0.0] * 40)),
    (TypeError, "NoneType", lambda: pushed(1).ihvp(None)),
    (TypeError, "got torch.int64", lambda: pushed(1).ihvp(np.ones(40, dtype=np.int64))),
    (TypeError, "got object", lambda: pushed(1).ihvp(np.full(40, None))),
    (TypeError, "masked", lambda: pushed(1).ihvp(np.ma.masked_less(np.ones(40), 2))),
    (TypeError, "out must be", lambda: pushed(1).ihvp(torch.zeros(40), out=3)),  # type: ignore[arg-type]
    (
        TypeError,
        "out must be torch.float32 as v",
        lambda: into(torch.zeros(40, dtype=torch.int64)),
    ),
    (ValueError, r"out must have shape \(40,\)", lambda: into(torch.zeros(2, 40))),
    (RuntimeError, "out does not go", lambda: into(torch.zeros(40), requires_grad=True)),
    (ValueError, "too large", lambda: SlidingWindowFisher(2**63, 4, 1.0)),
    (MemoryError, "too large", lambda: SlidingWindowFisher(1, 2**31, 1.0)),
    (ValueError, "is on meta", lambda: pushed(1).ihvp(torch.zeros(40, device="meta"))),
    (ValueError, "damping", lambda: pushed(1).ihvp(torch.zeros(40), damping=-1.0)),
    (ValueError, "damping", lambda: pushed(1).set_damping(math.inf)),
    (IndexError, r"\[0, 1\), got 1", lambda: pushed(1).remove(1)),
    (IndexError, r"\[0, 1\), got -1", lambda: pushed(1).replace(-1, torch.zeros(40))),
    (IndexError, r"\[0, 40\), got 40", lambda: pushed(1).element(0, 40)),
    (ValueError, "block_size must be", lambda: SlidingWindowFisher(1, 1, 1.0, block_size=0)),
]


@pytest.mark.parametrize(("kind", "text", "call"), REFUSED, ids=[t for _, t, _ in REFUSED])
def test_refusals(kind: type[Exception], text: str, call: Any) -> None:
    with pytest.raises(kind, match=text):
        call()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7FC00000, 0x7F800001], ids=hex)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_of_any_payload_is_refused(dtype: torch.dtype, bits: int) -> None:
    """Rounding must not carry out of the mantissa: 0x7fffffff became -0 in bfloat16."""
    fisher = SlidingWindowFisher(64, 2, 1.0, dtype=dtype)
    g = torch.ones(64)
    g.view(torch.int32)[5] = bits
    with pytest.raises(ValueError, match="finite"):
        fisher.push(g)
    assert len(fisher) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_leaves_the_window_as_it_was(bad: float) -> None:
    fisher = pushed(9)
    before = fisher.state_dict()
    g = torch.randn(40)
    g[17] = bad
    for call in (fisher.push, fisher.push_ihvp, lambda row: fisher.replace(1, row)):
        with pytest.raises(ValueError, match="finite"):
            call(g)
    after = fisher.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, Tensor) else True


def test_overflow_of_the_storage_is_refused() -> None:
    fisher = SlidingWindowFisher(3, 2, 1.0, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16"):
        fisher.push(torch.tensor([0.0, 3.4e38, 0.0]))
    narrow = SlidingWindowFisher(3, 2, 1.0)
    with pytest.raises(ValueError, match="float32"):
        narrow.push(torch.tensor([0.0, 1e300, 0.0], dtype=WIDE))


# What comes in -------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [WIDE, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [7, 100, 515])
def test_many_vectors_are_those_of_one_at_a_time(d: int, storage: torch.dtype) -> None:
    """Bit for bit, also where columns do not fill a register."""
    fisher = pushed(7, d=d, dtype=storage)
    for dtype in (WIDE, torch.float32):
        for k in (2, 3, 6, 33):
            V = torch.randn(k, d, dtype=dtype)
            assert torch.equal(fisher.ihvp(V), torch.stack([fisher.ihvp(v) for v in V]))


def test_a_push_with_many_vectors() -> None:
    fisher, twin = pushed(9), pushed(0)
    twin.load_state_dict(fisher.state_dict())
    g, V = torch.randn(40), torch.randn(9, 40, dtype=WIDE)
    X = fisher.push_ihvp(g, V)
    twin.push(g)
    assert torch.equal(X, twin.ihvp(V))


@pytest.mark.parametrize("options", [{}, {"block_size": 3}], ids=str)
def test_arrays_of_every_kind(
    options: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    """R24"""
    fisher = pushed(4, **options)
    v = np.random.default_rng(0).standard_normal(40)
    wanted = fisher.ihvp(v)
    fixed = v.copy()
    fixed.flags.writeable = False
    for form in (fixed, v.astype(">f8"), v[::-1].copy()[::-1], np.stack([v, v])[:, ::1][1]):
        assert np.array_equal(fisher.ihvp(form), wanted)
    fisher.push(fixed)
    assert isinstance(fisher.push_ihvp(v, fixed), Tensor)
    with pytest.raises(TypeError, match="v is a masked array"):
        fisher.ihvp(np.ma.masked_less(v, 0))
    for bad in (v.astype(np.longdouble), np.array([None] * 40), np.array(["a"] * 40)):
        with pytest.raises(TypeError, match="ihvp: v must be real"):
            fisher.ihvp(bad)
    assert not recwarn.list


def test_where_to_put_the_result() -> None:
    fisher, v = pushed(4), torch.randn(40, dtype=WIDE)
    wanted, out = fisher.ihvp(v), torch.empty(40, dtype=WIDE)
    assert fisher.ihvp(v, out=out) is out
    assert torch.equal(out, wanted)
    with pytest.raises(ValueError, match=r"out must have shape \(40,\)"):
        fisher.ihvp(v, out=torch.empty(2, 40, dtype=WIDE))
    for bad in (torch.empty(40), torch.empty(40, dtype=torch.int64), np.empty(40)):
        with pytest.raises(TypeError, match="out must be"):
            fisher.ihvp(v, out=bad)
    for one, other in ((v.clone().requires_grad_(), out), (v, out.clone().requires_grad_())):
        with pytest.raises(RuntimeError, match="derivatives"):
            fisher.ihvp(one, out=other)


@pytest.mark.parametrize("options", [{}, {"block_size": 3}], ids=str)
def test_places_of_elements(options: dict[str, Any]) -> None:
    fisher = pushed(4, **options)
    inverse = fisher.ihvp(torch.eye(40, dtype=WIDE))
    index = torch.tensor([5, 3, 5, 39], dtype=torch.uint8)
    assert_close(fisher.inverse_block(index), inverse[index.long()][:, index.long()])
    assert_close(fisher.elements(index, index), inverse.diagonal()[index.long()])
    for bad in ([0, 1], np.array([0]), torch.tensor([0.0]), torch.tensor([True])):
        for call in (fisher.inverse_block, lambda i: fisher.elements(i, i)):
            with pytest.raises(TypeError, match="must be"):
                call(bad)
    with pytest.raises(ValueError, match="1 dimension"):
        fisher.inverse_block(torch.zeros(1, 2, dtype=torch.int64))


def test_complex_vectors_of_the_linear_operator() -> None:
    pytest.importorskip("scipy")
    fisher, z = pushed(4), np.linspace(-1, 1, 40) * (1 + 2j)
    found = fisher.as_linear_operator() @ z
    assert np.allclose(found, fisher.ihvp(z.real) + 1j * fisher.ihvp(z.imag), rtol=1e-12)


@pytest.mark.parametrize(
    ("d", "m", "kind"),
    [(2**70, 1, ValueError), (3, 2**70, ValueError), (3, 10**9, MemoryError)],
)
def test_sizes_beyond_all_memory(d: int, m: int, kind: type[Exception]) -> None:
    """R31"""
    with pytest.raises(kind, match="too large"):
        SlidingWindowFisher(d, m, 0.1)


@pytest.mark.parametrize("options", [{}, {"block_size": 3}], ids=str)
def test_squares_that_overflow_are_refused(options: dict[str, Any]) -> None:
    fisher = pushed(4, **options)
    v = torch.ones(40, dtype=WIDE)
    before = fisher.ihvp(v)
    for call in (fisher.push, fisher.push_ihvp, lambda row: fisher.replace(0, row)):
        with pytest.raises(ValueError, match="square"):
            call(1e160 * v)
    assert torch.equal(fisher.ihvp(v), before)


def test_no_block_size_in_a_subclass() -> None:
    class Window(SlidingWindowFisher):
        pass

    assert Window(4, 2, 0.1).block_size is None
    with pytest.raises(TypeError, match="block_size"):
        Window(4, 2, 0.1, block_size=2)


def test_made_in_inference_mode() -> None:
    """R34"""
    with torch.inference_mode():
        fisher = pushed(2)
    fisher.push(torch.randn(40))
    G = fisher._window[fisher._order]
    assert_close(fisher.gram(), G @ G.T)
