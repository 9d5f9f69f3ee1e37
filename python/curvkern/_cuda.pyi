"""Operations on contiguous float32 or float64 CUDA tensors, launched on ``stream``."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

def runtime_version() -> int: ...
def log_iv(v: Tensor, x: Tensor, out: Tensor, stream: int) -> None: ...
def log_iv_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor, stream: int) -> None: ...
def log_iv_hess(
    v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor, stream: int
) -> None: ...
def log_kv(v: Tensor, x: Tensor, out: Tensor, stream: int) -> None: ...
def log_kv_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor, stream: int) -> None: ...
def log_kv_hess(
    v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor, stream: int
) -> None: ...
def log_ive(v: Tensor, x: Tensor, out: Tensor, stream: int) -> None: ...
def log_ive_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor, stream: int) -> None: ...
def log_ive_hess(
    v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor, stream: int
) -> None: ...
def log_kve(v: Tensor, x: Tensor, out: Tensor, stream: int) -> None: ...
def log_kve_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor, stream: int) -> None: ...
def log_kve_hess(
    v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor, stream: int
) -> None: ...
def iv_ratio(v: Tensor, x: Tensor, out: Tensor, stream: int) -> None: ...
def iv_ratio_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor, stream: int) -> None: ...
def iv_ratio_hess(
    v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor, stream: int
) -> None: ...
def kv_ratio(v: Tensor, x: Tensor, out: Tensor, stream: int) -> None: ...
def kv_ratio_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor, stream: int) -> None: ...
def kv_ratio_hess(
    v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor, stream: int
) -> None: ...
def log_hyp0f1(v: Tensor, x: Tensor, out: Tensor, stream: int) -> None: ...
def log_hyp0f1_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor, stream: int) -> None: ...
def log_hyp0f1_hess(
    v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor, stream: int
) -> None: ...
def matern(v: Tensor, x: Tensor, out: Tensor, stream: int) -> None: ...
def matern_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor, stream: int) -> None: ...
def matern_hess(
    v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor, stream: int
) -> None: ...
def sparsemax(
    z: Tensor,
    mass: Tensor,
    k: int,
    p: Tensor,
    tau: Tensor,
    support: Tensor,
    stream: int,
) -> None: ...
def sparsemax_jacobian(p: Tensor, grad: Tensor, out: Tensor, stream: int) -> None: ...
def sinkhorn_device_workspace(batch: int, n: int, m: int, count: int) -> int: ...
def sinkhorn_device_solve(
    inputs: tuple[Any, ...],
    extent: Tensor | None,
    f0: Tensor | None,
    g0: Tensor | None,
    workspace: Tensor,
    f: Tensor,
    g: Tensor,
    info: Tensor,
    errors: Tensor,
    max_iter: int,
    tol: float,
    check_every: int,
    translate: bool,
    anneal: bool,
    symmetric: bool,
    checked: Callable[[int, float], None],
    stream: int,
) -> None: ...
def sinkhorn_device_products(
    inputs: tuple[Any, ...],
    f: Tensor,
    g: Tensor,
    v: Tensor | None,
    u: Tensor | None,
    workspace: Tensor,
    pv: Tensor | None,
    ptu: Tensor | None,
    totals: Tensor,
    count: int,
    stream: int,
) -> None: ...
def sinkhorn_device_gradient(
    inputs: tuple[Any, ...],
    f: Tensor,
    g: Tensor,
    u: Tensor,
    w: Tensor,
    workspace: Tensor,
    out: Tensor,
    stream: int,
) -> None: ...
def sinkhorn_device_newton_workspace(n: int, m: int) -> int: ...
def sinkhorn_device_newton(
    inputs: tuple[Any, ...],
    extent: Tensor | None,
    workspace: Tensor,
    f: Tensor,
    g: Tensor,
    info: Tensor,
    trace: Tensor,
    max_iter: int,
    tol: float,
    warm_start: bool,
    stream: int,
) -> None: ...
def hutchinson_device_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    hz: Sequence[Tensor],
    z: Sequence[Tensor],
    m: Sequence[Tensor],
    v: Sequence[Tensor],
    stale: Sequence[Tensor],
    blocks: Sequence[int],
    offsets: Sequence[int],
    rows: Sequence[int],
    settings: Sequence[float],
    scale: float,
    draws: bool,
    seed: int,
    step: int,
    workspace: Callable[[int], Tensor],
    stream: int,
) -> None: ...
def hutchinson_device_sophia(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    hz: Sequence[Tensor],
    z: Sequence[Tensor],
    m: Sequence[Tensor],
    h: Sequence[Tensor],
    offsets: Sequence[int],
    rows: Sequence[int],
    settings: Sequence[float],
    scale: float,
    weight: float,
    draws: bool,
    seed: int,
    step: int,
    workspace: Callable[[int], Tensor],
    stream: int,
) -> None: ...
def hutchinson_device_metric(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    hz: Sequence[Tensor],
    z: Sequence[Tensor],
    D: Sequence[Tensor],
    last_p: Sequence[Tensor],
    last_g: Sequence[Tensor],
    offsets: Sequence[int],
    rows: Sequence[int],
    settings: Sequence[float],
    scale: float,
    draws: bool,
    seed: int,
    step: int,
    probe: int,
    sums: Tensor,
    workspace: Callable[[int], Tensor],
    stream: int,
) -> None: ...
def hutchinson_device_descent(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    D: Sequence[Tensor],
    last_p: Sequence[Tensor],
    last_g: Sequence[Tensor],
    rows: Sequence[int],
    settings: Sequence[float],
    scale: float,
    workspace: Callable[[int], Tensor],
    stream: int,
) -> None: ...
def hutchinson_device_signs(
    out: Sequence[Tensor],
    offsets: Sequence[int],
    seed: int,
    step: int,
    probe: int,
    workspace: Callable[[int], Tensor],
    stream: int,
) -> None: ...
def hutchinson_device_accumulate(
    mean: Sequence[Tensor],
    square: Sequence[Tensor],
    hz: Sequence[Tensor],
    z: Sequence[Tensor],
    offsets: Sequence[int],
    seed: int,
    step: int,
    probe: int,
    count: int,
    workspace: Callable[[int], Tensor],
    stream: int,
) -> None: ...
def mfac_device_workspace(count: int, d: int, k: int) -> int: ...
def mfac_device_products(
    window: Tensor,
    slots: Sequence[int],
    into: int,
    gradient: Tensor | None,
    v: Tensor,
    workspace: Tensor,
    out: Tensor,
    stream: int,
) -> None: ...
def mfac_device_combine(
    window: Tensor,
    slots: Sequence[int],
    coefficient: Tensor,
    alpha: float,
    v: Tensor | None,
    workspace: Tensor,
    out: Tensor,
    stream: int,
) -> None: ...
def sparseconv_device_multiply(
    matrix: tuple[Tensor, ...],
    block: tuple[int, int],
    values: Tensor,
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    lanes: int,
    y: Tensor,
    stream: int,
) -> None: ...
def sparseconv_device_transpose(
    values: Tensor, source: Tensor, block: tuple[int, int], out: Tensor, stream: int
) -> None: ...
def sparseconv_device_correlation_workspace(
    count: int, block: tuple[int, int], tiles: int, batch: int, pixels: int
) -> int: ...
def sparseconv_device_correlate(
    matrix: tuple[Tensor, ...],
    block: tuple[int, int],
    gy: Tensor,
    x: Tensor,
    workspace: Tensor,
    values: Tensor,
    stream: int,
) -> None: ...
def sparseconv_device_convolve(
    depthwise: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    activation: str,
    y: Tensor,
    stream: int,
) -> None: ...
def sparseconv_device_input_gradient(
    gy: Tensor,
    weight: Tensor,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    gx: Tensor,
    stream: int,
) -> None: ...
def sparseconv_device_weight_workspace(
    kernel: tuple[int, int], out: tuple[int, int], batch: int, channels: int
) -> int: ...
def sparseconv_device_weight_gradient(
    gy: Tensor,
    x: Tensor,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    workspace: Tensor,
    gw: Tensor,
    stream: int,
) -> None: ...
