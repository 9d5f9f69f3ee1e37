"""Sparse convolutions in several processes and threads, interrupted, and at the ends of memory.

Cases of the reliability list are named in the docstrings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.testing import assert_close

from curvkern import _sparseconv, nn, sparse
from sparseconv_chains import guarded
from test_memory import Repeated
from test_mfac_optimizer_threads import in_threads

RANKS = 2
STEPS = 3


def network() -> torch.nn.Sequential:
    torch.manual_seed(3)
    mask = torch.rand(12, 6) < 0.4
    return torch.nn.Sequential(
        nn.FirstConv2d(3, 6, 3, activation="relu6"),
        nn.DepthwiseConv2d(6, padding=1, activation="silu"),
        nn.SparseWeightConv2d(6, 12, mask=mask, activation="hardswish"),
    ).double()


def train(model: torch.nn.Module, part: slice) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    x = torch.sin(torch.arange(6.0 * 3 * 9 * 9, dtype=torch.float64)).reshape(6, 3, 9, 9)
    for step in range(STEPS):
        optimizer.zero_grad()
        model((1 + step) * x[part]).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    model = DistributedDataParallel(network())
    torch.save(train(model, slice(rank * 3, rank * 3 + 3)), f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"
)
def test_two_processes_are_as_one(tmp_path: Path) -> None:
    """DistributedDataParallel trains the values of modules as one process does."""
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=RANKS)
    expected = train(network(), slice(None))
    found = [torch.load(tmp_path / str(rank)) for rank in range(RANKS)]
    assert_close(found[0], found[1], rtol=0, atol=0)
    assert_close(found[0], expected, rtol=1e-11, atol=1e-13)


def test_compile_while_masks_change() -> None:
    """Of torch.nn.utils.prune, which sparsify reads, and of modules, which change in size."""
    torch.compiler.reset()
    dense = torch.nn.Sequential(torch.nn.Conv2d(6, 12, 1), torch.nn.ReLU())
    prune.l1_unstructured(dense[0], "weight", 0.7)
    x = torch.randn(2, 6, 5, 5)
    quick = sparse.sparsify(dense, autotune=False)
    compiled = torch.compile(quick, fullgraph=True, backend="aot_eager")
    (module,) = (m for m in quick.modules() if isinstance(m, nn.SparseWeightConv2d))
    assert module.values.numel() < 0.31 * 72
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for mask in (None, module.mask() & (torch.rand(12, 6) < 0.7), torch.rand(12, 6) < 0.5):
        if mask is not None:
            module.set_mask_(mask)
        expected = torch.autograd.grad(quick(x).square().sum(), module.values)[0]
        compiled(x).square().sum().backward()
        assert_close(module.values.grad, expected)
        optimizer.step()
        optimizer.zero_grad()
        truth = torch.relu(module.to_dense()(x))
        assert_close(compiled(x), truth)
        with torch.no_grad():
            assert_close(compiled(x), truth)


def test_eight_threads() -> None:
    """R45: bits are those of serial calls, on data of their own through shared modules."""
    model = network().eval()
    inputs = [torch.randn(1, 3, 16 + k % 3, 17).double() for k in range(8)]
    with torch.no_grad():
        alone = [model(x) for x in inputs]
    gradients = [
        torch.autograd.grad(model(x).square().sum(), list(model.parameters())) for x in inputs
    ]
    together: list[Any] = [[] for _ in inputs]
    fresh = network().eval()

    def work(k: int) -> None:
        for _ in range(5):
            with torch.no_grad():
                y = fresh(inputs[k])
            loss = fresh(inputs[k]).square().sum()
            together[k].append((y, torch.autograd.grad(loss, list(fresh.parameters()))))

    in_threads([lambda k=k: work(k) for k in range(8)])
    for k in range(8):
        assert len(together[k]) == 5
        for y, found in together[k]:
            assert_close(y, alone[k], rtol=0, atol=0)
            assert_close(found, gradients[k], rtol=0, atol=0)


LONG = """
import os, signal, threading, time, torch, warnings
from curvkern import nn, sparse
warnings.filterwarnings("ignore", ".*Sparse CSR tensor support", UserWarning)
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
C, side = {channels}, {side}
pointwise = nn.SparseWeightConv2d(C, C, mask=torch.rand(C, C) < 0.5).eval()
depthwise = nn.DepthwiseConv2d(C, kernel_size=7, padding=3).eval()
x = torch.randn(1, C, side, side)
calls = {{
    "pointwise": lambda: pointwise(x),
    "depthwise": lambda: depthwise(x),
    "sddmm": lambda: sparse.sddmm(x[0].flatten(1), x[0].flatten(1), pointwise.weight_csr()),
}}
"""


@pytest.mark.parametrize("name", ["pointwise", "depthwise", "sddmm"])
def test_interrupts_and_other_threads(name: str, run_python: Any) -> None:
    """R43, R44: KeyboardInterrupt within two seconds, a thread that runs on, and use after."""
    run_python(
        LONG.format(channels=256, side=64)
        + f"""
call, ticks, sent = calls[{name!r}], [], []
with torch.no_grad():
    expected = call()
    def interrupt():
        began = time.perf_counter()
        while time.perf_counter() - began < 0.3:
            ticks.append(0)
            time.sleep(0.001)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        while True:
            call()
    except KeyboardInterrupt:
        assert time.perf_counter() - sent[0] < 2
    assert len(ticks) > 10, len(ticks)
    assert torch.equal(call(), expected)
"""
    )


def test_one_long_call_is_interrupted(run_python: Any) -> None:
    """R43: within a call that would take many seconds."""
    run_python(
        LONG.format(channels=1024, side=192)
        + """
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
began = time.perf_counter()
try:
    with torch.no_grad():
        for _ in range(20):
            calls["pointwise"]()
except KeyboardInterrupt:
    assert time.perf_counter() - began < 2.5
else:
    raise AssertionError("not interrupted")
y = pointwise(x[..., :1, :1])
assert torch.isfinite(y).all()
"""
    )


def test_fork_of_every_module(run_python: Any) -> None:
    """R46: plans of two threads are not taken in the child, which finishes with equal bits."""
    run_python(
        """
        import os, torch
        from curvkern import nn
        torch.set_num_threads(2)
        model = torch.nn.Sequential(
            nn.DepthwiseConv2d(64, padding=1), nn.SparseWeightConv2d(64, 64)
        ).eval()
        x = torch.randn(4, 64, 28, 28)
        with torch.no_grad():
            expected = model(x), model(x)[0]
        child = os.fork()
        if child == 0:
            with torch.no_grad():
                os._exit(0 if torch.equal(model(x), expected[0]) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """
    )


def test_exit_with_living_objects(run_python: Any) -> None:
    """R52: silent, with status 0."""
    run_python(
        """
        import torch, warnings
        from curvkern import nn, sparse
        warnings.filterwarnings("ignore", ".*Sparse CSR tensor support", UserWarning)
        model = torch.nn.Sequential(
            nn.DepthwiseConv2d(8), nn.SparseWeightConv2d(8, 8, format="tuned")
        ).eval()
        packed = sparse.PackedWeight(torch.eye(8).to_sparse_csr())
        with torch.no_grad():
            y = model(torch.ones(1, 8, 9, 9))
            z = sparse.sparse_conv1x1(torch.ones(8, 1, 1), packed)
        torch.never_collected = model, packed, y, z, model[1].values.sum()
        """
    )


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_access_beyond_the_ends(dtype: torch.dtype) -> None:
    """R54: of what users pass to the functions, sizes that are no multiple of a register."""
    W = torch.where(torch.rand(12, 8) < 0.4, torch.randn(12, 8), 0.0).to(dtype)
    W[:, -1] = 1  # the last row of the image is read
    mats = [W.to_sparse_csr(), W.to_sparse_bsr((4, 1))]
    filters, first = torch.randn(8, 1, 3, 3).to(dtype), torch.randn(5, 8, 3, 3).to(dtype)
    for height, width in ((1, 1), (1, 3), (3, 5), (7, 7), (4, 8), (5, 13), (1, 33)):
        plain = [
            torch.randn(2, 8, height, width), torch.randn(12), torch.randn(2, 12, height, width)
        ]  # fmt: skip
        expected, found = [], []
        for results, around in ((expected, lambda t: (t, None)), (found, guarded)):
            kept = [around(t.to(dtype)) for t in (*plain, filters, first)]
            x, bias, residual, w, f = (t for t, _ in kept)
            for matrix in mats:
                values = around(matrix.values())
                kept.append(values)
                crow, col = matrix.crow_indices(), matrix.col_indices()
                build = (
                    torch.sparse_csr_tensor if col.numel() == len(values[0]) and
                    values[0].dim() == 1 else torch.sparse_bsr_tensor
                )  # fmt: skip
                weight = build(crow, col, values[0], (12, 8))
                results.append(sparse.sparse_conv1x1(x, weight, bias, residual=residual))
                results.append(sparse.sddmm(residual.flatten(2), x.flatten(2), weight))
            for stride in (1, 2):
                settings: Any = {"stride": stride, "padding": 1}
                results.append(sparse.depthwise_conv2d(x, w, bias[:8].clone(), **settings))
                results.append(sparse.conv2d_first(x, f, bias[:5].clone(), **settings))
        assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_more_than_2_to_the_31_elements() -> None:
    """R32: the last row of an image, and of a result, lies beyond."""
    pixels = Repeated.PERIOD
    rows = 2**31 // pixels + 1
    image, result = Repeated(rows), Repeated(rows)
    image.last[:] = np.linspace(1, 2, pixels, dtype=np.float32)
    expected = 3 * torch.from_numpy(image.last.copy()) + 0.5
    x = torch.from_numpy(image.array).view(1, rows, pixels)
    W = torch.sparse_coo_tensor([[0], [rows - 1]], [3.0], (1, rows)).to_sparse_csr()
    bias = torch.tensor([0.5])
    y = sparse.sparse_conv1x1(x.unsqueeze(2), W, bias)
    assert_close(y.flatten(), expected)

    crow = torch.zeros(rows + 1, dtype=torch.int64)
    crow[-1] = 1
    col = torch.tensor([rows - 1])
    pattern = _sparseconv.Pattern.validated(crow, col, (1, 1), (rows, rows))
    packed = _sparseconv.pack(pattern, torch.tensor([3.0]), "strip4")
    out = torch.from_numpy(result.array).view(1, rows, pixels)
    packed.plan.multiply(x, packed.values, bias.expand(rows).clone(), None, "none", out)
    assert_close(out[0, -1], expected)
    assert float(out[0, 0, 0]) == 0.5
    del x, y, out
    image.close()
    result.close()
