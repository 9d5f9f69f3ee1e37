"""OASIS and SANIA: preconditioned descent with step lengths of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import _settings
from ._hutchinson import Batch, HutchinsonOptimizer


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

    def _averaged(self, D: Tensor, new: Tensor, group: dict[str, Any]) -> Tensor:
        return D.mul_(group["beta2"]).add_(new, alpha=1 - group["beta2"])

    @staticmethod
    def _metric(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        D: Tensor = state["hessian_diag"]
        return D.abs().clamp_min(group["alpha"])


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)))


class OASIS(_Preconditioned):
    r"""Descent preconditioned by an averaged Hessian diagonal, with an adaptive step length.

    .. math::
        D_k = \beta_2 D_{k-1} + (1 - \beta_2)\, z \odot Hz, \quad
        B_k = \max(|D_k|, \alpha), \quad w_{k+1} = w_k - \eta_k B_k^{-1} g_k, \\
        \eta_k = \min\Bigl(\sqrt{1 + \theta_{k-1}}\, \eta_{k-1},\;
        \frac{\|w_k - w_{k-1}\|_{B_k}}{2 \|g_k - g_{k-1}\|_{B_k^{-1}}}\Bigr), \quad
        \theta_k = \eta_k / \eta_{k-1} .

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
    n_probes, seed, process_group, hvp
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
        process_group: Any = None,
        hvp: str = "auto",
    ) -> None:
        _settings.flag("OASIS", "adaptive", adaptive)
        self._adaptive = adaptive
        super().__init__(
            params, {"lr": lr, "beta2": beta2, "alpha": alpha}, warmup_probes,
            n_probes=n_probes, seed=seed, process_group=process_group, hvp=hvp,
        )  # fmt: skip
        self._numbers |= {"scale": 1.0, "theta": math.inf}

    def _own(self) -> tuple[str, ...]:
        return (*super()._own(), "_adaptive")

    def _probe_count(self) -> int:
        return self._n_probes if self._numbers["step"] else self._warmup_probes

    def _move(self, batch: Batch) -> None:
        D, grads = self._mean_over_probes(batch), self._gradients(batch)
        states, metric = self._states(batch), []
        for new, state, group in zip(D, states, batch.groups, strict=True):
            if state["refreshes"] == 1:
                state["hessian_diag"].copy_(new)
            else:
                self._averaged(state["hessian_diag"], new, group)
            metric.append(self._metric(state, group))
        if self._adaptive:
            self._adapt(batch, states, grads, metric)
        for p, g, B, state, group in zip(
            batch.params, grads, metric, states, batch.groups, strict=True
        ):
            if self._adaptive:
                state["last_param"].copy_(p)
                state["last_grad"].copy_(g)
            rate = self._numbers["scale"] * float(group["lr"])
            p.copy_(p.to(g.dtype) - rate * g / B)

    def _adapt(
        self,
        batch: Batch,
        states: list[dict[str, Any]],
        grads: list[Tensor],
        metric: list[Tensor],
    ) -> None:
        """The factor of all rates, from parameters that have moved before."""
        known = [i for i, state in enumerate(states) if state["step"] > 1]
        lr = float(self.param_groups[0]["lr"])
        if not known or lr == 0:
            return
        dw = [batch.params[i].to(grads[i].dtype) - states[i]["last_param"] for i in known]
        dg = [grads[i] - states[i]["last_grad"] for i in known]
        B = [metric[i] for i in known]
        length = math.sqrt(_inner(torch._foreach_mul(dw, B), dw))
        change = math.sqrt(_inner(torch._foreach_div(dg, B), dg))
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
    n_probes, seed, process_group, hvp
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
        process_group: Any = None,
        hvp: str = "auto",
    ) -> None:
        _settings.number("SANIA", "f_star", f_star)
        self._f_star = float(f_star)
        super().__init__(
            params, {"beta2": beta2, "alpha": alpha}, warmup_probes,
            n_probes=n_probes, seed=seed, process_group=process_group, hvp=hvp,
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
        grads, states = self._gradients(batch), self._states(batch)
        warm = 0 if batch.step else self._warmup_probes
        D = self._mean_over_probes(batch, slice(warm, None))
        first = self._mean_over_probes(batch, slice(0, warm)) if warm else D
        metric = []
        for start, new, state, group in zip(first, D, states, batch.groups, strict=True):
            if state["refreshes"] == 1:
                state["hessian_diag"].copy_(start)
            self._averaged(state["hessian_diag"], new, group)
            metric.append(self._metric(state, group))
        square = _inner(torch._foreach_div(grads, metric), grads)
        gap = max(0.0, batch.loss * batch.scale - self._f_star)
        if square == 0 or gap == 0:
            return
        upsilon = 2 * gap / square
        # 1 - sqrt(1 - u) without cancellation.
        rate = upsilon / (1 + math.sqrt(1 - upsilon)) if upsilon <= 1 else 1.0
        for p, g, B in zip(batch.params, grads, metric, strict=True):
            p.copy_(p.to(g.dtype) - rate * g / B)
