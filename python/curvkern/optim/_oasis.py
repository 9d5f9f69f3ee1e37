"""OASIS and SANIA: preconditioned descent with step lengths of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..reference.hutchinson import DescentRow, MetricRow
from . import _settings, _shards
from ._batch import Batch
from ._hutchinson import HutchinsonOptimizer


class _Preconditioned(HutchinsonOptimizer):
    """Keeps D, an average of z Hz that starts from several probes; B = max(abs(D), alpha)."""

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        warmup_probes: int,
        **options: Any,
    ) -> None:
        _settings.count(type(self).__name__, "warmup_probes", warmup_probes)
        self._warmup_probes = warmup_probes
        super().__init__(params, defaults, **options)

    def _own(self) -> tuple[str, ...]:
        return (*super()._own(), "_warmup_probes")

    def _measure(
        self,
        batch: Batch,
        states: list[list[Tensor]],
        probes: slice,
        fresh: bool = False,
    ) -> Tensor:
        """Average D with the mean over some probes, and return what ``reference.metric`` does.

        ``fresh``: where there is no average yet, the mean takes its place.
        """
        count = len(batch.params)
        first, last, _ = probes.indices(self._probe_count())
        hz, z = (t[first * count : last * count] for t in (batch.hz, batch.z))
        own = batch.own
        keys = [
            (id(group), fresh and state["refreshes"] == 1, state["step"] > 1)
            for group, state in zip(batch.groups, own, strict=True)
        ]

        def row(i: int) -> MetricRow:
            group, (_, is_first, is_known) = batch.groups[i], keys[i]
            beta2 = 0.0 if is_first else float(group["beta2"])
            return MetricRow(beta2, float(group["alpha"]), float(is_known))

        rows, numbers = self._rows_of(keys, row)
        found = self._run(
            "metric", batch, [batch.params, batch.grads, hz, z, *_three(states)], batch.offsets,
            rows, numbers, batch.scale, True, *self._probes_of(batch), first,
        )  # fmt: skip
        total = torch.zeros(3, dtype=torch.float64)
        for index, sums in found:
            total += _shards.add_over([batch.whole[i] for i in index], sums).cpu()
        return total

    def _descend(self, batch: Batch, states: list[list[Tensor]], rates: list[float]) -> None:
        """With the rate of each parameter."""
        keys = [
            DescentRow(rate, float(group["alpha"]))
            for rate, group in zip(rates, batch.groups, strict=True)
        ]
        rows, numbers = self._rows_of(keys, lambda i: keys[i])
        tensors = [batch.params, batch.grads, *_three(states)]
        self._run("descent", batch, tensors, rows, numbers, batch.scale)


def _three(states: list[list[Tensor]]) -> list[list[Tensor]]:
    """D, the last parameters and gradients, which not all keep."""
    return states if len(states) == 3 else [states[0], [], []]


class OASIS(_Preconditioned):
    r"""Descent preconditioned by an averaged Hessian diagonal, with an adaptive step length.

    .. math::
        D_k = \beta_2 D_{k-1} + (1 - \beta_2)\, z \odot Hz, \quad
        B_k = \max(|D_k|, \alpha), \quad w_{k+1} = w_k - \eta_k B_k^{-1} g_k, \\
        \eta_k = \min\Bigl(\sqrt{1 + \theta_{k-1}}\, \eta_{k-1},\;
        \frac{\|w_k - w_{k-1}\|_{B_k}}{2 \|g_k - g_{k-1}\|_{B_k^{-1}}}\Bigr), \quad
        \theta_k = \eta_k / \eta_{k-1}, \quad \theta_0 = \infty .

    Parameters
    ----------
    params
        Parameters, or dicts of them and their own settings.
    lr
        :math:`\eta_0`; with ``adaptive`` steps are a common multiple of the groups' ``lr``.
    beta2
        In [0, 1).
    alpha
        The smallest curvature, positive.
    adaptive
        Whether the step length adapts; else it is ``lr``.
    warmup_probes
        :math:`D_0` is a mean over so many probes.
    n_probes, seed, fused, foreach, process_group, hvp
        As of :class:`AdaHessian`.

    Raises
    ------
    TypeError, ValueError
        A setting is of another kind or out of range.

    Notes
    -----
    ``probes`` and ``hz`` of the first :meth:`step` are those of the warm-up. Every parameter
    that moves in one step should move in the next, as differences of gradients are taken.

    References
    ----------
    .. [1] M. Jahani, S. Rusakov, Z. Shi, P. Richtárik, M. W. Mahoney, M. Takáč, "Doubly
       Adaptive Scaled Algorithm for Machine Learning Using Second-Order Information", ICLR
       2022.

    Examples
    --------
    >>> import torch
    >>> from curvkern.optim import OASIS
    >>> p = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> optimizer = OASIS([p], lr=0.1)
    >>> for _ in range(30):
    ...     _ = optimizer.step(lambda: 50 * p[0] ** 2 + 0.5 * p[1] ** 2)
    >>> bool((p.abs() < 1e-3).all())
    True
    """

    _group_settings: ClassVar[tuple[str, ...]] = ("lr", "beta2", "alpha")
    _buffers: ClassVar[tuple[str, ...]] = ("hessian_diag", "last_param", "last_grad")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        *,
        beta2: float = 0.999,
        alpha: float = 0.01,
        adaptive: bool = True,
        warmup_probes: int = 4,
        n_probes: int = 1,
        seed: int = 0,
        fused: bool | None = None,
        foreach: bool | None = None,
        process_group: Any = None,
        hvp: str = "auto",
    ) -> None:
        _settings.flag("OASIS", "adaptive", adaptive)
        self._adaptive = adaptive
        super().__init__(
            params, {"lr": lr, "beta2": beta2, "alpha": alpha}, warmup_probes,
            n_probes=n_probes, seed=seed, fused=fused, foreach=foreach,
            process_group=process_group, hvp=hvp,
        )  # fmt: skip
        self._numbers |= {"scale": 1.0, "theta": math.inf}

    def _own(self) -> tuple[str, ...]:
        return (*super()._own(), "_adaptive")

    def _kept(self) -> tuple[str, ...]:
        return self._buffers if self._adaptive else self._buffers[:1]

    def _probe_count(self) -> int:
        return self._n_probes if self._numbers["step"] else self._warmup_probes

    def _move(self, batch: Batch) -> None:
        if any(p.is_meta for p in batch.whole):
            raise ValueError("OASIS: step lengths need numbers, parameters are on meta")
        states = self._states(batch, self._kept())
        sums = self._measure(batch, states, slice(None), fresh=True)
        if self._adaptive and any(self.state[p]["step"] > 1 for p in batch.whole):
            self._adapt(math.sqrt(sums[0]), math.sqrt(sums[1]))
        scale = self._numbers["scale"]
        self._descend(batch, states, [scale * float(group["lr"]) for group in batch.groups])

    def _adapt(self, length: float, change: float) -> None:
        """The factor of all rates, from parameters that have moved before."""
        lr = float(self.param_groups[0]["lr"])
        if lr == 0:
            return
        scale, theta = self._numbers["scale"], self._numbers["theta"]
        new = math.sqrt(1 + theta) * scale
        if change > 0:
            new = min(new, length / (2 * change) / lr)
        if 0 < new < math.inf:
            self._numbers |= {"scale": new, "theta": new / scale}


class SANIA(_Preconditioned):
    r"""Polyak's step in the metric of an averaged Hessian diagonal; there is no step size.

    .. math::
        D \leftarrow \beta_2 D + (1 - \beta_2)\, z \odot Hz, \quad B = \max(|D|, \alpha), \\
        \upsilon = \frac{2 (f - f^*)}{g^\top B^{-1} g}, \quad
        \lambda = 1 - \sqrt{1 - \upsilon} \text{ if } \upsilon \le 1 \text{ else } 1, \quad
        w \leftarrow w - \lambda B^{-1} g .

    Parameters
    ----------
    params
        Parameters, or dicts of them and their own settings.
    beta2
        In [0, 1).
    alpha
        The smallest curvature, positive.
    f_star
        :math:`f^*`, the least value of the loss; at or below it nothing moves.
    warmup_probes
        The first D is the mean over so many probes, before the one of the first step.
    n_probes, seed, fused, foreach, process_group, hvp
        As of :class:`AdaHessian`.

    Raises
    ------
    TypeError, ValueError
        A setting is of another kind or out of range; :meth:`step` has no loss.

    Notes
    -----
    ``probes`` and ``hz`` of the first :meth:`step` begin with those of the warm-up.

    References
    ----------
    .. [1] F. Abdukhakimov, C. Xiang, D. Kamzolov, R. Gower, M. Takáč, "SANIA: Polyak-type
       Optimization Framework Leads to Scale Invariant Stochastic Algorithms", arXiv:2312.17369.

    Examples
    --------
    >>> import torch
    >>> from curvkern.optim import SANIA
    >>> p = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> optimizer = SANIA([p])
    >>> for _ in range(10):
    ...     _ = optimizer.step(lambda: 50 * p[0] ** 2 + 0.5 * p[1] ** 2)
    >>> bool((p.abs() < 1e-2).all())
    True
    """

    _group_settings: ClassVar[tuple[str, ...]] = ("beta2", "alpha")
    _buffers: ClassVar[tuple[str, ...]] = ("hessian_diag",)

    def __init__(
        self,
        params: Iterable[Any],
        *,
        beta2: float = 0.999,
        alpha: float = 0.01,
        f_star: float = 0.0,
        warmup_probes: int = 4,
        n_probes: int = 1,
        seed: int = 0,
        fused: bool | None = None,
        foreach: bool | None = None,
        process_group: Any = None,
        hvp: str = "auto",
    ) -> None:
        _settings.number("SANIA", "f_star", f_star)
        self._f_star = float(f_star)
        super().__init__(
            params, {"beta2": beta2, "alpha": alpha}, warmup_probes,
            n_probes=n_probes, seed=seed, fused=fused, foreach=foreach,
            process_group=process_group, hvp=hvp,
        )  # fmt: skip

    def _own(self) -> tuple[str, ...]:
        return (*super()._own(), "_f_star")

    def _probe_count(self) -> int:
        return self._n_probes + (0 if self._numbers["step"] else self._warmup_probes)

    def _check_ways(self, loss: Tensor | None) -> None:
        if loss is None:
            raise ValueError("SANIA: step needs the loss; pass loss or a closure")

    def _move(self, batch: Batch) -> None:
        assert batch.loss is not None
        states = self._states(batch, self._kept())
        warm = 0 if batch.step else self._warmup_probes
        if warm:
            self._measure(batch, states, slice(0, warm), fresh=True)
        square = float(self._measure(batch, states, slice(warm, None))[2])
        gap = max(0.0, batch.loss * batch.scale - self._f_star)
        if square == 0 or gap == 0:
            return
        upsilon = 2 * gap / square
        # 1 - sqrt(1 - u) without cancellation.
        rate = upsilon / (1 + math.sqrt(1 - upsilon)) if upsilon <= 1 else 1.0
        self._descend(batch, states, [rate] * len(batch.params))
