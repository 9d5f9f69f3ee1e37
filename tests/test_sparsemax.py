"""Projection onto the simplex: values against exact arithmetic, derivatives, and all inputs."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

from curvkern import _runtime, ot
from curvkern.reference import sparsemax as reference
from operations import both_dtypes, requiring_grad
from test_memory import Guarded
from test_ops_inputs import ARRAYS, LAYOUTS, Subclass

INF, NAN = torch.inf, torch.nan
UNLIMITED = 2**62
LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 130, 1000)

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sparsemax": ot.sparsemax,
    "topk_sparsemax": lambda z, dim=-1: ot.topk_sparsemax(z, 3, dim),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def exact(z: list[float], mass: float = 1.0, k: int | None = None) -> list[Fraction]:
    """The projection in rational arithmetic, by the definition of the threshold."""
    entries = [Fraction(x) for x in z]
    order = sorted(range(len(z)), key=lambda i: (-entries[i], i))[:k]
    total, threshold = Fraction(0), Fraction(0)
    for rank, i in enumerate(order, 1):
        total += entries[i]
        if entries[i] > (total - Fraction(mass)) / rank:
            threshold = (total - Fraction(mass)) / rank
    kept = set(order)
    return [max(x - threshold, Fraction(0)) if i in kept else Fraction(0)
            for i, x in enumerate(entries)]  # fmt: skip


def project(
    z: Tensor, mass: Tensor | float = 1.0, k: int = UNLIMITED
) -> tuple[Tensor, Tensor, Tensor]:
    mass = torch.as_tensor(mass, dtype=torch.float64).expand(z.shape[:-1])
    return torch.ops.curvkern.sparsemax(z, mass, k)


# Values -------------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("k", [None, 1, 2, 5])
@pytest.mark.parametrize("scale", [1e-8, 1e-2, 1.0, 30.0, 1e12])
def test_exact_projection(dtype: torch.dtype, scale: float, k: int | None) -> None:
    eps = torch.finfo(dtype).eps
    for n in (1, 2, 5, 8, 17, 40):
        for mass in (1.0, 1e-3, 700.0):
            z = (scale * torch.randn(n)).to(dtype)
            truth = exact(z.tolist(), mass, k)
            p, tau, support = project(z, mass, k or UNLIMITED)
            errors = [abs(Fraction(x) - y) for x, y in zip(p.tolist(), truth, strict=True)]
            assert max(errors) <= 2 * eps * mass
            assert abs(sum(map(Fraction, p.tolist())) - Fraction(mass)) <= 4 * eps * mass
            assert int(support) == int((p > 0).sum()) <= (k or n)
            from_tau = torch.where(p > 0, z.double() - tau, 0.0).to(dtype)
            bound = 4e-16 * (abs(tau.item()) + mass) + eps * mass
            assert_close(p, from_tau, rtol=0, atol=bound)


@both_dtypes
@pytest.mark.parametrize("n", LENGTHS)
def test_lengths_against_sorting(dtype: torch.dtype, n: int) -> None:
    bound = 4 * torch.finfo(dtype).eps
    for scale in (1e-3, 0.1, 1.0, 100.0):
        z = (scale * torch.randn(20, n)).to(dtype)
        for k in (1, 2, 4, 50, None):
            got = ot.sparsemax(z) if k is None else ot.topk_sparsemax(z, k)
            expected = reference.sparsemax(z.double(), k=k).to(dtype)
            assert_close(got, expected, rtol=0, atol=bound)
            assert_close(got.double().sum(-1), torch.ones(20).double(), rtol=0, atol=bound)


def test_a_million_entries_that_share_what_one_large_one_leaves() -> None:
    """The sum is right although 10^6 differences cancel to all but their last digits."""
    z = torch.rand(10**6, dtype=torch.float64) * 1e-7
    z[123] = 0.5
    p, tau, support = project(z)
    assert int(support) == int((p > 0).sum())
    assert abs(p.sum().item() - 1) < 1e-14
    assert_close(p, (z - tau).clamp_min(0), rtol=0, atol=2e-16)


def test_spread_over_all_magnitudes() -> None:
    """Hard for Newton's method: each step drops few entries."""
    z = -torch.logspace(-300, 0, 2000, dtype=torch.float64)
    for k in (None, 7):
        got = project(z, k=k or UNLIMITED)[0]
        truth = [float(x) for x in exact(z.tolist(), k=k)]
        assert_close(got, torch.tensor(truth, dtype=torch.float64), rtol=0, atol=1e-15)


@both_dtypes
def test_masses(dtype: torch.dtype) -> None:
    z = torch.randn(5, 30, dtype=dtype)
    mass = torch.tensor([0.0, 1e-30, 0.25, 3.0, 1e20], dtype=torch.float64)
    p, tau, support = project(z, mass)
    assert_close(p.double().sum(-1), mass, rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert (p[0] == 0).all()
    assert support[0] == 0
    assert tau[0] == z[0].max().double()
    assert int((p[1] > 0).sum()) == support[1] == 1
    assert project(z, NAN)[0].isnan().all()


@pytest.mark.parametrize(
    ("z", "k", "expected"),
    [
        ([0, 1, 1, 1, 0], 2, [0, 0.5, 0.5, 0, 0]),
        ([2, 2, 2, 2.5, 2], 3, [1 / 6, 1 / 6, 0, 2 / 3, 0]),
        ([1e20, -1e300, 1e20, 1e20], 2, [0.5, 0, 0.5, 0]),
        ([0.0] * 20, 7, [1 / 7] * 7 + [0] * 13),
        ([0.0, -0.0, 0.0], 1, [1, 0, 0]),
        ([INF, 1, INF, INF], 3, [1 / 3, 0, 1 / 3, 1 / 3]),
        ([1, INF, -INF, INF, INF], 2, [0, 0.5, 0, 0.5, 0]),
        ([-INF, 3, -INF], 2, [0, 1, 0]),
        ([-1.7e308, 1.7e308], 1, [0, 1]),
        ([5e-324, 0], 2, [0.5, 0.5]),
        ([-INF, -INF], 2, [NAN, NAN]),
        ([1, NAN, INF], 2, [NAN, NAN, NAN]),
    ],
)
def test_ties_and_edges(z: list[float], k: int, expected: list[float]) -> None:
    rows = torch.tensor([z, [0.0] * len(z)], dtype=torch.float64)
    got = ot.topk_sparsemax(rows, k)
    assert_close(
        got[0].tolist(), [float(x) for x in expected], rtol=0, atol=1e-16, equal_nan=True
    )
    assert got[1].isfinite().all()  # the row next to it
    if k >= len(z):
        assert torch.equal(ot.sparsemax(rows).nan_to_num(-1), got.nan_to_num(-1))
    assert_close(reference.sparsemax(rows, k=k), got, rtol=0, atol=1e-15, equal_nan=True)


@every_function
def test_shift_and_scale(name: str) -> None:
    """p(z + c) = p(z), and the projection of a projection is itself."""
    z = torch.randn(50, 21, dtype=torch.float64)
    p = FUNCTIONS[name](z)
    assert_close(FUNCTIONS[name](z + 64), p, rtol=0, atol=1e-13)
    assert_close(FUNCTIONS[name](p), p, rtol=0, atol=1e-15)
    assert (FUNCTIONS[name](-100 * torch.arange(9.0)) == torch.eye(9)[0]).all()


# Derivatives, transforms, the compiler ------------------------------------------------------


@every_function
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_gradcheck(name: str, dim: int) -> None:
    (z,) = requiring_grad(torch.randn(4, 5, 6, dtype=torch.float64))

    def function(z: Tensor) -> Tensor:
        return FUNCTIONS[name](z, dim=dim)

    assert torch.autograd.gradcheck(
        function,
        z,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(function, z, check_fwd_over_rev=True)


@both_dtypes
def test_jacobian(dtype: torch.dtype) -> None:
    p = ot.sparsemax(torch.randn(7, 19, dtype=dtype))
    g = torch.randn(7, 19, dtype=dtype)
    v = (p > 0).to(torch.float64)
    expected = v * (g - (v * g).sum(-1, keepdim=True) / v.sum(-1, keepdim=True))
    got = torch.ops.curvkern.sparsemax_jacobian(p, g)
    assert_close(got, expected.to(dtype), rtol=0, atol=4 * torch.finfo(dtype).eps)
    p[2] = NAN
    assert torch.ops.curvkern.sparsemax_jacobian(p, g)[2].isnan().all()


@every_function
def test_transforms(name: str) -> None:
    function = FUNCTIONS[name]
    z, w = torch.randn(2, 4, 6, dtype=torch.float64)
    assert torch.equal(vmap(function)(z), function(z))
    assert torch.equal(vmap(function, in_dims=1)(z), function(z.T))
    assert torch.equal(vmap(vmap(function))(z[None]), function(z[None]))
    backward, forward = vmap(jacrev(function))(z), vmap(jacfwd(function))(z)
    assert_close(backward, forward)
    assert_close(jvp(function, (z,), (w,))[1], (forward @ w[..., None]).squeeze(-1))
    # H = 2 J^T J for the square: the Jacobian itself is constant
    H = vmap(hessian(lambda x: (function(x) ** 2).sum()))(z)
    assert_close(H, 2 * backward.mT @ backward)


@every_function
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(name: str, dynamic: bool) -> None:
    torch.compiler.reset()
    function = FUNCTIONS[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((5,), (3, 7), (2, 4)):
        (z,) = requiring_grad(torch.randn(shape, dtype=torch.float64))
        w = torch.randn(shape, dtype=torch.float64)
        assert torch.equal(compiled(z), function(z))
        assert torch.equal(*(torch.autograd.grad(f(z), z, w)[0] for f in (compiled, function)))


@both_dtypes
@pytest.mark.parametrize("shape", [(4,), (2, 3, 5)])
def test_opcheck(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    z = torch.randn(shape, dtype=dtype)
    mass = torch.ones(shape[:-1], dtype=torch.float64)
    operations = torch.ops.curvkern
    torch.library.opcheck(operations.sparsemax.default, (z, mass, 2))
    torch.library.opcheck(operations.sparsemax_jacobian.default, (ot.sparsemax(z), z))
    graded = z.clone().requires_grad_()  # what an exported graph does
    (slope,) = torch.autograd.grad(operations.sparsemax(graded, mass, 2)[0], graded, z)
    assert torch.equal(slope, operations.sparsemax_jacobian(ot.topk_sparsemax(z, 2), z))


@every_function
def test_graphs_and_autocast(name: str) -> None:
    (z,) = requiring_grad(torch.randn(3, 5))
    with torch.no_grad():
        assert not FUNCTIONS[name](z).requires_grad
    with torch.inference_mode():
        assert FUNCTIONS[name](z).is_inference()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(FUNCTIONS[name](z), FUNCTIONS[name](z.detach()))
    FUNCTIONS[name](z).sum().backward()  # a gradient of stride 0
    assert_close(z.grad, torch.zeros(3, 5), rtol=0, atol=1e-6)


@every_function
def test_reference_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (z,) = requiring_grad(torch.randn(3, 4, 5, dtype=torch.float64))
    w = torch.randn(3, 4, 5, dtype=torch.float64)
    native = FUNCTIONS[name](z, dim=1)
    monkeypatch.setattr(_runtime, "_BACKEND", "reference")
    twin = FUNCTIONS[name](z, dim=1)
    assert_close(twin, native)
    assert_close(torch.autograd.grad(twin, z, w), torch.autograd.grad(native, z, w))


# Inputs -------------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [1, 3])
def test_layout(name: str, layout: str, dim: int) -> None:
    z = torch.randn(2, 3, 4, 5)
    moved = LAYOUTS[layout](z).detach().requires_grad_()
    expected = FUNCTIONS[name](z, dim=dim)
    result = FUNCTIONS[name](moved, dim=dim)
    assert torch.equal(result, expected)
    result.backward(LAYOUTS[layout](z))
    assert_close(moved.grad, torch.ops.curvkern.sparsemax_jacobian(
        expected.movedim(dim, -1), z.movedim(dim, -1)).movedim(-1, dim))  # fmt: skip


@every_function
def test_expanded_empty_and_special_tensors(name: str) -> None:
    function, z = FUNCTIONS[name], torch.randn(1, 6)
    assert torch.equal(function(z.expand(4, 6)), function(z).expand(4, 6))
    assert torch.equal(function(torch.zeros(1).expand(4), dim=0), function(torch.zeros(4)))
    for shape in ((0, 3), (2, 0, 3)):
        (empty,) = requiring_grad(torch.zeros(shape))
        function(empty).sum().backward()
        assert empty.grad is not None
        assert function(empty).shape == empty.grad.shape == shape
    assert type(function(z.as_subclass(Subclass))) is Subclass
    assert function(torch.empty(2, 3, device="meta"), dim=0).shape == (2, 3)


@every_function
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_halves(name: str, half: torch.dtype) -> None:
    (z,) = requiring_grad(torch.randn(3, 9).to(half))
    p = FUNCTIONS[name](z)
    assert torch.equal(p, FUNCTIONS[name](z.float()).to(half))
    p.backward(torch.randn(3, 9).to(half))
    assert z.grad is not None
    assert z.grad.dtype == half
    assert z.grad.isfinite().all()


@every_function
@pytest.mark.parametrize("layout", ARRAYS)
def test_numpy(name: str, layout: str) -> None:
    z = np.random.default_rng(0).standard_normal((3, 4))
    got = FUNCTIONS[name](ARRAYS[layout](z))
    np.testing.assert_array_equal(got, FUNCTIONS[name](torch.tensor(z)).numpy(), strict=True)
    assert FUNCTIONS[name](np.arange(3)).dtype == np.float64
    assert FUNCTIONS[name](torch.arange(3)).dtype == torch.float32


@every_function
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (None, TypeError, "z must be a tensor.* got NoneType"),
        ("1", TypeError, "z must be a tensor.* got str"),
        (torch.ones(2, dtype=torch.bool), TypeError, "z must be real, got torch.bool"),
        (
            torch.ones(2, dtype=torch.complex64),
            TypeError,
            "z must be real, got torch.complex64",
        ),
        (torch.eye(2).to_sparse(), TypeError, "z has layout torch.sparse_coo"),
        (np.ma.masked_array([1.0, 2.0], mask=[0, 1]), TypeError, "z is a masked array"),
        (torch.tensor(1.0), ValueError, "z must have at least one dimension"),
        (torch.zeros(3, 0), ValueError, r"z of shape \(3, 0\) is empty along dim -1"),
    ],
)
def test_refusals(name: str, bad: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        FUNCTIONS[name](bad)
    assert FUNCTIONS[name](torch.zeros(4)).sum() == 1


@every_function
def test_too_large(name: str) -> None:
    with pytest.raises(MemoryError, match=r"sparsemax: a result of shape .* is too large"):
        FUNCTIONS[name](torch.zeros(1, 1).expand(2**31, 2**31))
    assert FUNCTIONS[name](torch.zeros(4)).sum() == 1


def test_refused_options() -> None:
    z = torch.zeros(2, 3)
    with pytest.raises(IndexError, match=r"sparsemax: dim must be in \[-2, 1\].* got 2"):
        ot.sparsemax(z, dim=2)
    with pytest.raises(TypeError, match="sparsemax: dim must be an integer, got float"):
        ot.sparsemax(z, dim=1.0)
    with pytest.raises(ValueError, match="topk_sparsemax: k must be at least 1, got 0"):
        ot.topk_sparsemax(z, 0)
    for bad in (1.5, None, True, "2"):
        with pytest.raises(TypeError, match="topk_sparsemax: k must be an integer, got"):
            ot.topk_sparsemax(z, bad)
    assert torch.equal(ot.topk_sparsemax(z, 10**30), ot.sparsemax(z))
    assert torch.equal(ot.topk_sparsemax(z, np.int64(2)), ot.topk_sparsemax(z, 2))


# Machine ------------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("end", ["front", "back"])
def test_no_access_beyond_the_ends(dtype: torch.dtype, end: str) -> None:
    """R54: inputs and outputs lie against a page that is inaccessible."""
    native = _runtime.cpu_module()
    guarded = [Guarded() for _ in range(6)]
    for n in (*range(1, 36), 64, 511):
        z, p, grad = (memory.tensor(n, dtype, end) for memory in guarded[:3])
        mass, tau, support = (memory.tensor(1, torch.float64, end) for memory in guarded[3:])
        z.copy_(torch.randn(n))
        mass.fill_(1)
        for k in (UNLIMITED, 2):
            native.sparsemax(z, mass[0], k, p, tau[0], support[0])
            assert torch.equal(p, project(z, k=k)[0])
        native.sparsemax_jacobian(p, z, grad)
        assert torch.equal(grad, torch.ops.curvkern.sparsemax_jacobian(p, z))


@both_dtypes
def test_deterministic(dtype: torch.dtype, thread_counts: Any) -> None:
    z = torch.randn(300, 500, dtype=dtype)
    results = []
    for threads in (1, 1, 2, 3):
        thread_counts(threads)
        p = ot.topk_sparsemax(z, 4)
        results.append((p, torch.ops.curvkern.sparsemax_jacobian(p, z)))
    assert_close(results[1:], results[:1] * 3, rtol=0, atol=0)
    assert torch.equal(results[0][0][7], ot.topk_sparsemax(z[7], 4))


@pytest.mark.parametrize("isa", ["v2", "v3", "v4", "baseline"])
def test_forced_isa(isa: str, run_python: Any, tmp_path: Any) -> None:
    supported = _runtime.build_info()["isas"]
    if isa not in supported:
        pytest.skip(f"this processor runs {', '.join(supported)}, not {isa}")
    z = torch.randn(40, 101, dtype=torch.float64)
    torch.save(z, tmp_path / "z.pt")
    run_python(
        f"""
        import torch
        from curvkern import ot
        z = torch.load({str(tmp_path / "z.pt")!r})
        p = [ot.topk_sparsemax(z.to(d), k)
             for d in (torch.float64, torch.float32) for k in (2, 101)]
        torch.save(p, {str(tmp_path / "p.pt")!r})
        """,
        environment={"CURVKERN_ISA": isa},
    )
    expected = [ot.topk_sparsemax(z.to(dtype), k)
                for dtype in (torch.float64, torch.float32) for k in (2, 101)]  # fmt: skip
    for got, p in zip(torch.load(tmp_path / "p.pt"), expected, strict=True):
        assert_close(got, p, rtol=0, atol=4 * torch.finfo(p.dtype).eps)


def test_forked_child(run_python: Any) -> None:
    """R46: after parallel use the child finishes, and finds the same."""
    run_python(
        """
        import os, torch
        from curvkern import ot
        z = torch.randn(200, 400)
        before = ot.sparsemax(z)
        child = os.fork()
        if child == 0:
            os._exit(0 if (ot.sparsemax(z).numpy() == before.numpy()).all() else 1)
        assert os.waitpid(child, 0)[1] == 0
        """
    )


def test_native_argument_check() -> None:
    native = _runtime.cpu_module().sparsemax
    z, one, three = torch.ones(2, 3), torch.ones(2).double(), torch.ones(3).double()
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        native(z, one, 0, z, one, one)
    with pytest.raises(ValueError, match="z has 2 rows but mass has 3"):
        native(z, three, 1, z, three, three)
    with pytest.raises(TypeError, match="mass must be float64"):
        native(z, one.float(), 1, z, one, one)
    with pytest.raises(ValueError, match="z has empty rows"):
        native(z[:, :0].contiguous(), one, 1, z[:, :0].contiguous(), one, one)
    with pytest.raises(ValueError, match=r"p has shape \(3, 2\) but z has shape \(2, 3\)"):
        native(z, one, 1, torch.ones(3, 2), one, one)


@pytest.mark.cuda
@both_dtypes
@pytest.mark.parametrize("n", [1, 3, 32, 33, 1000, 20_000])
def test_cuda_equals_cpu(dtype: torch.dtype, n: int) -> None:
    z = torch.randn(37, n, dtype=dtype)
    z[5] = 0.25  # ties
    z[6, 0] = NAN
    z[7, 0] = INF
    z[8] = -INF
    mass = torch.rand(37, dtype=torch.float64)
    mass[9] = 0
    bound = 4 * torch.finfo(dtype).eps
    for k in (1, 3, UNLIMITED):
        on_host = torch.ops.curvkern.sparsemax(z, mass, k)
        runs = [torch.ops.curvkern.sparsemax(z.cuda(), mass.cuda(), k) for _ in range(2)]
        assert_close(runs[1], runs[0], rtol=0, atol=0, equal_nan=True)
        on_device = tuple(t.cpu() for t in runs[0])
        assert_close(on_device, on_host, rtol=bound, atol=bound, equal_nan=True)
        grad = torch.randn_like(z)
        slopes = torch.ops.curvkern.sparsemax_jacobian(on_host[0].cuda(), grad.cuda())
        expected = torch.ops.curvkern.sparsemax_jacobian(on_host[0], grad)
        assert_close(slopes.cpu(), expected, rtol=bound, atol=bound, equal_nan=True)
