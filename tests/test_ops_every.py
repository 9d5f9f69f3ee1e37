"""Checks that every operation of the table passes, whatever its arguments mean.

Those that know an operation as a function of an order and an argument are in
test_ops_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map_only

from curvkern import _runtime
from operations import OPERANDS

pytestmark = pytest.mark.filterwarnings("ignore::curvkern.ConvergenceWarning")
every = pytest.mark.parametrize("name", OPERANDS)


def operands(name: str) -> tuple[Any, ...]:
    """The table's arguments, no two numbers of them alike."""
    generator = torch.Generator().manual_seed(0)

    def vary(tensor: Tensor) -> Tensor:
        share = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        return (tensor * (1 + 0.05 * share)).to(tensor.dtype)

    varied: tuple[Any, ...] = tree_map_only(Tensor, vary, OPERANDS[name])
    return varied


def operation(name: str) -> Any:
    return getattr(torch.ops.curvkern, name).default


def is_written(name: str) -> list[bool]:
    """Of each argument: is it an output as well?"""
    return [
        argument.alias_info is not None and argument.alias_info.is_write
        for argument in operation(name)._schema.arguments
    ]


def run(name: str, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Results, and what was written to, of copies of the arguments."""
    own = tuple(
        tree_map_only(Tensor, torch.clone, argument) if written else argument
        for argument, written in zip(arguments, is_written(name), strict=False)
    )
    own += arguments[len(own) :]
    results = tree_leaves(operation(name)(*own))
    written = [a for a, written in zip(own, is_written(name), strict=False) if written]
    results += tree_leaves(written)
    return [result for result in results if isinstance(result, Tensor)]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(some, others, strict=True)
    )


def map_numbers(function: Callable[[Tensor], Tensor], arguments: Any) -> Any:
    """Of the tensors of numbers; those of indices stay."""
    return tree_map_only(
        Tensor, lambda t: function(t) if t.is_floating_point() else t, arguments
    )


def in_nan(tensor: Tensor) -> Tensor:
    """The same numbers in every third place of a buffer of NaN."""
    buffer = torch.full((*tensor.shape, 3), torch.nan, dtype=tensor.dtype)
    buffer[..., 1] = tensor
    return buffer[..., 1]


def transposed(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


def negated(tensor: Tensor) -> Tensor:
    """A view with the negative bit."""
    view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert view.is_neg() or not view.numel()
    return view


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "in_nan": in_nan,
    "transposed": transposed,
    "negated": negated,
}


def close(name: str, some: list[Tensor], others: list[Tensor]) -> None:
    """Two kernels' results; of solvers the potentials, which three steps leave at their tol."""
    solves = name in ("sinkhorn_dense", "sinkhorn_points", "ot_solve")
    for mine, theirs in zip(some[: 2 if solves else None], others, strict=not solves):
        # A metric's sums are float64, of terms in the parameters' float32.
        wide = mine.dtype is torch.float64 and name != "hutchinson_metric"
        assert_close(mine, theirs, rtol=1e-6 if solves else 1e-9 if wide else 1e-5, atol=1e-12)


@every
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(name: str, layout: str) -> None:
    """Strided, transposed and negative-bit arguments give the bits of contiguous ones."""
    arguments = operands(name)
    changed = tuple(
        a if written else map_numbers(LAYOUTS[layout], a)
        for a, written in zip(
            arguments, is_written(name) + [False] * len(arguments), strict=False
        )
    )
    assert equal(run(name, arguments), run(name, changed))


@every
def test_stride_zero(name: str) -> None:
    """Rows that share their memory."""
    shared: tuple[Any, ...] = map_numbers(
        lambda t: t[:1].expand(t.shape) if t.dim() else t, operands(name)
    )
    own: tuple[Any, ...] = tree_map_only(Tensor, lambda t: t.clone(), shared)
    skip = is_written(name)
    shared = tuple(
        mine if at < len(skip) and skip[at] else theirs
        for at, (mine, theirs) in enumerate(zip(own, shared, strict=True))
    )
    assert equal(run(name, own), run(name, shared))


@every
def test_repetition_and_threads(name: str, thread_counts: Any) -> None:
    arguments = operands(name)
    results = []
    for threads in (1, 2, 2, 1):
        thread_counts(threads)
        results.append(run(name, arguments))
    assert equal(results[0], results[3])
    assert equal(results[1], results[2])
    assert equal(results[0], results[1])


@every
def test_autocast_changes_nothing(name: str) -> None:
    arguments = operands(name)
    expected = run(name, arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert equal(expected, run(name, arguments))


@every
def test_arguments_are_left_alone(name: str) -> None:
    arguments = operands(name)
    before = tree_map_only(Tensor, torch.clone, arguments)
    run(name, arguments)
    assert equal(
        [a for a in tree_leaves(before) if isinstance(a, Tensor)],
        [a for a in tree_leaves(arguments) if isinstance(a, Tensor)],
    )


@pytest.mark.parametrize("isa", ["v2", "v3", "v4", "baseline"])
def test_instruction_sets_agree(isa: str, run_python: Any, tmp_path: Any) -> None:
    supported = _runtime.build_info()["isas"]
    if isa not in supported:
        pytest.skip(f"this processor runs {', '.join(supported)}, not {isa}")
    script = f"""
        import sys, warnings
        sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
        warnings.simplefilter("ignore")
        import torch
        from test_ops_every import OPERANDS, operands, run
        torch.save({{name: run(name, operands(name)) for name in OPERANDS}},
                   {str(tmp_path / "results")!r})
    """
    run_python(script, environment={"CURVKERN_ISA": isa})
    found = torch.load(tmp_path / "results", weights_only=True)
    for name in OPERANDS:
        close(name, run(name, operands(name)), found[name])


@pytest.mark.cuda
@every
def test_cuda_equals_cpu(name: str) -> None:
    arguments = operands(name)
    there = tree_map_only(Tensor, lambda t: t.cuda(), arguments)
    close(name, run(name, arguments), [result.cpu() for result in run(name, there)])


@pytest.mark.parametrize(
    "name", [n for n in OPERANDS if n.startswith(("hutch", "mfac", "sparse"))]
)
def test_opcheck(name: str) -> None:
    """The others' are in test_ops_contract.py."""
    arguments = tree_map_only(Tensor, torch.clone, operands(name))
    torch.library.opcheck(operation(name), arguments)
