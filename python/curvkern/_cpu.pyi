"""Operations on contiguous float32 or float64 CPU tensors; the outputs come last."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

def build_info() -> dict[str, Any]: ...
def isa() -> str: ...
def in_forked_child() -> bool: ...
def elementary(name: str, x: Any, out: Any) -> None: ...
def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...
def log_iv(v: Tensor, x: Tensor, out: Tensor) -> None: ...
def log_iv_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor) -> None: ...
def log_iv_hess(v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor) -> None: ...
def log_kv(v: Tensor, x: Tensor, out: Tensor) -> None: ...
def log_kv_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor) -> None: ...
def log_kv_hess(v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor) -> None: ...
def log_ive(v: Tensor, x: Tensor, out: Tensor) -> None: ...
def log_ive_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor) -> None: ...
def log_ive_hess(v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor) -> None: ...
def log_kve(v: Tensor, x: Tensor, out: Tensor) -> None: ...
def log_kve_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor) -> None: ...
def log_kve_hess(v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor) -> None: ...
def iv_ratio(v: Tensor, x: Tensor, out: Tensor) -> None: ...
def iv_ratio_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor) -> None: ...
def iv_ratio_hess(v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor) -> None: ...
def kv_ratio(v: Tensor, x: Tensor, out: Tensor) -> None: ...
def kv_ratio_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor) -> None: ...
def kv_ratio_hess(v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor) -> None: ...
def log_hyp0f1(v: Tensor, x: Tensor, out: Tensor) -> None: ...
def log_hyp0f1_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor) -> None: ...
def log_hyp0f1_hess(v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor) -> None: ...
def matern(v: Tensor, x: Tensor, out: Tensor) -> None: ...
def matern_grad(v: Tensor, x: Tensor, dv: Tensor, dx: Tensor) -> None: ...
def matern_hess(v: Tensor, x: Tensor, dvv: Tensor, dvx: Tensor, dxx: Tensor) -> None: ...
def sparsemax(
    z: Tensor, mass: Tensor, k: int, p: Tensor, tau: Tensor, support: Tensor
) -> None: ...
def sparsemax_jacobian(p: Tensor, grad: Tensor, out: Tensor) -> None: ...
def plan_columns(
    cost: Tensor,
    f: Tensor,
    mass: Tensor,
    k: int,
    marginal: Tensor,
    tau: Tensor,
    square: Tensor,
) -> SupportGraph: ...

class SupportGraph:
    """The nonzeros of a plan by columns, and the Newton step that they define."""

    def solve(
        self, residual: Tensor, damping: float, tolerance: float, max_iter: int, step: Tensor
    ) -> int: ...
    def start(self) -> npt.NDArray[np.int64]: ...
    def row(self) -> npt.NDArray[np.int64]: ...
    def value(self) -> npt.NDArray[np.float64]: ...

def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    dilation: int,
    left: int,
    top: int,
    activation: str,
    y: Tensor,
) -> None: ...
def depthwise_input_grad(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    stride: int,
    dilation: int,
    left: int,
    top: int,
) -> None: ...
def depthwise_weight_grad(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    stride: int,
    dilation: int,
    left: int,
    top: int,
) -> None: ...
def first(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    left: int,
    top: int,
    activation: str,
    y: Tensor,
) -> None: ...
def check_sparse_pattern(
    crow: npt.NDArray[np.int64],
    col: npt.NDArray[np.int64],
    rows: int,
    columns: int,
    block_rows: int,
    block_columns: int,
) -> None: ...

class SparsePlan:
    """The order in which the nonzeros of a matrix are walked."""

    def __init__(
        self,
        crow: npt.NDArray[np.int64],
        col: npt.NDArray[np.int64],
        rows: int,
        columns: int,
        block_rows: int,
        block_columns: int,
        transposed: bool,
        by_blocks: bool,
        vectors: int,
        parts: int,
    ) -> None: ...
    def size(self) -> int: ...
    def gather(self, values: Tensor, out: Tensor) -> None: ...
    def multiply(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str,
        y: Tensor | None = None,
    ) -> Tensor: ...
    def sddmm(self, g: Tensor, x: Tensor, values: Tensor) -> None: ...

class ConvChain:
    """Convolutions one after the other, on images of one shape."""

    def __init__(
        self,
        shape: Sequence[int],
        element: int,
        stages: list[Any],
        threads: int,
        limits: Sequence[int],
        group: Sequence[int],
    ) -> None: ...
    def workspace(self) -> int: ...
    def shape(self) -> list[int]: ...
    def segments(self) -> list[tuple[int, int]]: ...
    def run(self, x: Tensor, workspace: Tensor, y: Tensor) -> None: ...

def sinkhorn_workspace(
    kind: str, narrow: bool, batch: int, n: int, m: int, dims: int, count: int
) -> int: ...
def sinkhorn_solve(
    inputs: tuple[Any, ...],
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
    most_checks: int,
    callback: Callable[[int], None] | None,
) -> list[tuple[int, float]]: ...
def sinkhorn_products(
    inputs: tuple[Any, ...],
    f: Tensor,
    g: Tensor,
    v: Tensor | None,
    u: Tensor | None,
    workspace: Tensor,
    pv: Tensor | None,
    ptu: Tensor | None,
    totals: Tensor | None,
    count: int,
) -> None: ...
def sinkhorn_points_gradient(
    inputs: tuple[Any, ...],
    f: Tensor,
    g: Tensor,
    u: Tensor,
    w: Tensor,
    workspace: Tensor,
    out: Tensor,
) -> None: ...
def sinkhorn_newton(
    a: Tensor,
    b: Tensor,
    cost: Tensor,
    eps: Tensor,
    rho: Tensor,
    f: Tensor,
    g: Tensor,
    result: Tensor,
    trace: Tensor,
    max_iter: int,
    tol: float,
    warm_start: bool,
) -> None: ...
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
def hutchinson_step(
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
) -> None: ...
def hutchinson_sophia(
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
) -> None: ...
def hutchinson_metric(
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
) -> None: ...
def hutchinson_descent(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    D: Sequence[Tensor],
    last_p: Sequence[Tensor],
    last_g: Sequence[Tensor],
    rows: Sequence[int],
    settings: Sequence[float],
    scale: float,
) -> None: ...
def hutchinson_signs(
    out: Sequence[Tensor], offsets: Sequence[int], seed: int, step: int, probe: int
) -> None: ...
def hutchinson_accumulate(
    mean: Sequence[Tensor],
    square: Sequence[Tensor],
    hz: Sequence[Tensor],
    z: Sequence[Tensor],
    offsets: Sequence[int],
    seed: int,
    step: int,
    probe: int,
    count: int,
) -> None: ...
def hutchinson_is_finite(tensors: Sequence[Tensor]) -> bool: ...
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
def norm_tangent(
    x: Tensor,
    xd: Tensor,
    w: Tensor | None,
    wd: Tensor | None,
    bd: Tensor | None,
    mean: Tensor,
    r: Tensor,
    groups: int,
    inner: int,
    by_channel: bool,
    y: Tensor,
) -> None: ...
def norm_reverse(
    x: Tensor,
    xd: Tensor,
    w: Tensor | None,
    wd: Tensor | None,
    mean: Tensor,
    r: Tensor,
    groups: int,
    inner: int,
    by_channel: bool,
    g: Tensor,
    gd: Tensor,
    xbar: Tensor | None,
    xbard: Tensor,
    sums: Tensor,
) -> None: ...
def gelu_bend(x: Tensor, t: Tensor, g: Tensor, xbard: Tensor) -> None: ...
def mfac_products(window: Tensor, slots: Sequence[int], v: Tensor, out: Tensor) -> None: ...
def mfac_push(
    window: Tensor, slots: Sequence[int], into: int, gradient: Tensor, v: Tensor, out: Tensor
) -> None: ...
def mfac_combine(
    window: Tensor,
    slots: Sequence[int],
    coefficient: Tensor,
    alpha: float,
    v: Tensor | None,
    out: Tensor,
) -> None: ...
def mfac_is_finite(window: Tensor, gradient: Tensor) -> bool: ...
def mfac_gram(window: Tensor, slots: Sequence[int], out: Tensor) -> None: ...
def mfac_whitened_squares(
    window: Tensor, slots: Sequence[int], root: Tensor, out: Tensor
) -> None: ...
def mfac_block_diagonal(
    window: Tensor, slots: Sequence[int], block: int, damping: float, norm: float, out: Tensor
) -> None: ...
def mfac_factorize(factor: Tensor, count: int, least: float, root: Tensor | None) -> None: ...
def mfac_drop_first(factor: Tensor, count: int) -> None: ...
def mfac_append(
    factor: Tensor, count: int, column: Tensor, diagonal: float, least: float
) -> None: ...
def mfac_solve(factor: Tensor, count: int, b: Tensor, only_first: bool) -> None: ...
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
