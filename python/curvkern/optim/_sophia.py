"""Sophia, with Hutchinson's or the Gauss-Newton-Bartlett estimate of the diagonal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import _hutchinson as ops
from . import _products, _settings
from ._hutchinson import Batch, HutchinsonOptimizer


class _Sophia(HutchinsonOptimizer):
    _group_settings: ClassVar[tuple[str, ...]] = ("lr", "betas", "gamma", "eps", "weight_decay")
    _buffers: ClassVar[tuple[str, ...]] = ("exp_avg", "hessian_diag")

    def _clipped_step(self, batch: Batch, curvature: list[Tensor]) -> None:
        """With new curvature, if there is any."""
        grads, states = self._gradients(batch), self._states(batch)
        if curvature and not batch.hz:
            for state in states:
                state["refreshes"] += 1
        for i, (p, state, group) in enumerate(
            zip(batch.params, states, batch.groups, strict=True)
        ):
            beta1, beta2 = group["betas"]
            m, h = state["exp_avg"], state["hessian_diag"]
            m.mul_(beta1).add_(grads[i], alpha=1 - beta1)
            if curvature:
                h.mul_(beta2).add_(curvature[i], alpha=1 - beta2)
            lr, eps = float(group["lr"]), group["eps"]
            step = (m / (group["gamma"] * h).clamp_min(eps)).nan_to_num_(0.0).clamp_(-1, 1)
            p.copy_(p.to(m.dtype) * (1 - lr * group["weight_decay"]) - lr * step)


class SophiaH(_Sophia):
    r"""Clipped descent, with a Hessian diagonal of Hutchinson's in the denominator.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
        h \leftarrow \beta_2 h + (1 - \beta_2)\, z \odot Hz \text{ every few steps}, \\
        w \leftarrow w - \eta \lambda w - \eta\,
        \operatorname{clip}\bigl(m / \max(\gamma h, \epsilon), -1, 1\bigr) .

    Parameters
    ----------
    params
        Parameters, or dicts of them and their own settings.
    lr
        :math:`\eta`, also the largest change of a parameter in one step.
    betas
        :math:`\beta_1, \beta_2` in [0, 1).
    gamma, eps, weight_decay
        :math:`\gamma, \epsilon, \lambda`. A curvature that is not positive makes a step of
        ``lr``.
    update_every
        Steps from one new curvature to the next.
    n_probes, seed, process_group, hvp
        As of :class:`AdaHessian`.

    Raises
    ------
    TypeError, ValueError
        A setting is of another kind or out of range.

    References
    ----------
    .. [1] H. Liu, Z. Li, D. Hall, P. Liang, T. Ma, "Sophia: A Scalable Stochastic Second-order
       Optimizer for Language Model Pre-training", ICLR 2024, arXiv:2305.14342.

    Examples
    --------
    >>> import torch
    >>> from curvkern.optim import SophiaH
    >>> p = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> optimizer = SophiaH([p], lr=0.02, gamma=1.0, update_every=2, weight_decay=0.0)
    >>> for _ in range(150):
    ...     _ = optimizer.step(lambda: 50 * p[0] ** 2 + 0.5 * p[1] ** 2)
    >>> bool((p.abs() < 0.1).all())
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.965, 0.99),
        *,
        gamma: float = 0.01,
        eps: float = 1e-12,
        weight_decay: float = 0.1,
        update_every: int = 10,
        n_probes: int = 1,
        seed: int = 0,
        process_group: Any = None,
        hvp: str = "auto",
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps}
        super().__init__(
            params, {**defaults, "weight_decay": weight_decay}, n_probes=n_probes,
            update_every=update_every, seed=seed, process_group=process_group, hvp=hvp,
        )  # fmt: skip

    def _move(self, batch: Batch) -> None:
        self._clipped_step(batch, self._mean_over_probes(batch) if batch.hz else [])


class SophiaG(_Sophia):
    r"""Clipped descent, with the Gauss-Newton-Bartlett diagonal in the denominator.

    As :class:`SophiaH`, with :math:`B \hat g \odot \hat g` in place of :math:`z \odot Hz`,
    where :math:`\hat g` is the gradient of the mean loss of B examples whose labels are drawn
    from the model itself. No second derivative is needed.

    Parameters
    ----------
    params
        Parameters, or dicts of them and their own settings.
    lr, betas, gamma, eps, weight_decay, update_every, process_group
        As of :class:`SophiaH`.

    Raises
    ------
    TypeError, ValueError
        A setting is of another kind or out of range.

    References
    ----------
    .. [1] H. Liu, Z. Li, D. Hall, P. Liang, T. Ma, "Sophia: A Scalable Stochastic Second-order
       Optimizer for Language Model Pre-training", ICLR 2024, arXiv:2305.14342, algorithm 2.

    Examples
    --------
    >>> import torch
    >>> from curvkern.optim import SophiaG
    >>> x, y = torch.eye(3), torch.tensor([0, 1, 2])
    >>> w = torch.zeros(3, 3, requires_grad=True)
    >>> optimizer = SophiaG([w], lr=0.1)
    >>> def sampled():
    ...     labels = torch.distributions.Categorical(logits=x @ w).sample()
    ...     return torch.nn.functional.cross_entropy(x @ w, labels)
    >>> for _ in range(20):
    ...     loss = torch.nn.functional.cross_entropy(x @ w, y)
    ...     _ = optimizer.step(loss=loss, sampled_loss=sampled, batch_size=3)
    >>> bool(loss < 0.3)
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.965, 0.99),
        *,
        gamma: float = 0.05,
        eps: float = 1e-12,
        weight_decay: float = 0.1,
        update_every: int = 10,
        process_group: Any = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps}
        super().__init__(
            params, {**defaults, "weight_decay": weight_decay}, update_every=update_every,
            process_group=process_group,
        )  # fmt: skip
        self._sampled: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss: Tensor | None = None,
        sampled_loss: Tensor | Callable[[], Tensor] | None = None,
        batch_size: int = 1,
    ) -> Any:
        """One step, from a loss or from the gradients that are there.

        Parameters
        ----------
        closure, loss
            As of :meth:`AdaHessian.step`; the gradients need no graph.
        sampled_loss
            The mean loss of ``batch_size`` examples with labels drawn from the model, or a
            function that computes it, called in the steps that need it: the first of every
            ``update_every``.
        batch_size
            B.

        Returns
        -------
        Tensor or None
            The loss.

        Raises
        ------
        ValueError
            A loss or gradient is not finite; nothing was changed. The step needs
            ``sampled_loss`` and there is none.
        """
        _settings.count("SophiaG", "batch_size", batch_size)
        self._sampled = {}
        if closure is not None and loss is None:
            with torch.enable_grad():
                loss, closure = closure(), None
        if loss is not None:
            _products.checked_loss("SophiaG", loss)
        if self._numbers["step"] % self._update_every == 0 and not self._is_overflow():
            if sampled_loss is None:
                raise ValueError("SophiaG: this step needs sampled_loss")
            with torch.enable_grad():
                value = sampled_loss() if callable(sampled_loss) else sampled_loss
            _products.checked_loss("SophiaG", value)
            params = [p for g in self.param_groups for p in g["params"] if p.requires_grad]
            found = _products.gradients("SophiaG", value, params, False)
            grads = [torch.zeros_like(p) if g is None else g
                     for p, g in zip(params, found, strict=True)]  # fmt: skip
            self._reduce(grads)
            _products.check_finite("SophiaG", "gradients", grads)
            self._sampled = {
                p: batch_size * g.to(ops.state_dtype(p.dtype)).square()
                for p, g in zip(params, grads, strict=True)
            }
        try:
            return super().step(closure, loss=loss)
        finally:
            self._sampled = {}

    def _wants_products(self) -> bool:
        return False

    def _is_ready(self, p: Tensor) -> bool:
        return bool(self._sampled) or super()._is_ready(p)

    def _move(self, batch: Batch) -> None:
        curvature = [self._sampled[p] for p in batch.params] if self._sampled else []
        self._clipped_step(batch, curvature)
