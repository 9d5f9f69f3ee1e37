"""Sophia, with Hutchinson's or the Gauss-Newton-Bartlett estimate of the diagonal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..reference.hutchinson import SophiaRow
from . import _products, _settings, _shards
from ._batch import Batch
from ._hutchinson import HutchinsonOptimizer


class _Sophia(HutchinsonOptimizer):
    _group_settings: ClassVar[tuple[str, ...]] = ("lr", "betas", "gamma", "eps", "weight_decay")
    _buffers: ClassVar[tuple[str, ...]] = ("exp_avg", "hessian_diag")

    def _clipped_step(
        self, batch: Batch, products: list[Tensor], probes: list[Tensor], weight: float
    ) -> None:
        """With weight times the mean of probes times products, if there are any."""
        states = self._states(batch, self._kept())

        def row(i: int) -> SophiaRow:
            group = batch.groups[i]
            beta1, beta2 = map(float, group["betas"])
            names = ("gamma", "eps", "weight_decay")
            return SophiaRow(
                float(group["lr"]), beta1, beta2, *(float(group[k]) for k in names)
            )

        rows, numbers = self._rows_of([id(group) for group in batch.groups], row)
        self._run(
            "sophia", batch, [batch.params, batch.grads, products, probes, *states],
            batch.offsets, rows, numbers, batch.scale, weight, True, *self._probes_of(batch),
        )  # fmt: skip


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
    n_probes, seed, fused, foreach, process_group, hvp
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
        fused: bool | None = None,
        foreach: bool | None = None,
        process_group: Any = None,
        hvp: str = "auto",
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps}
        super().__init__(
            params, {**defaults, "weight_decay": weight_decay}, n_probes=n_probes,
            update_every=update_every, seed=seed, fused=fused, foreach=foreach,
            process_group=process_group, hvp=hvp,
        )  # fmt: skip

    def _move(self, batch: Batch) -> None:
        self._clipped_step(batch, batch.hz, batch.z, batch.scale)


class SophiaG(_Sophia):
    r"""Clipped descent, with the Gauss-Newton-Bartlett diagonal in the denominator.

    As :class:`SophiaH`, with :math:`B \hat g \odot \hat g` in place of :math:`z \odot Hz`,
    where :math:`\hat g` is the gradient of the mean loss of B examples whose labels are drawn
    from the model itself. No second derivative is needed.

    Parameters
    ----------
    params
        Parameters, or dicts of them and their own settings.
    lr, betas, gamma, eps, weight_decay, update_every, fused, foreach, process_group
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
        fused: bool | None = None,
        foreach: bool | None = None,
        process_group: Any = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps}
        super().__init__(
            params, {**defaults, "weight_decay": weight_decay}, update_every=update_every,
            fused=fused, foreach=foreach, process_group=process_group,
        )  # fmt: skip
        self._sampled: dict[Tensor, Tensor] = {}
        self._batch_size = 1

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
        with self._lock:
            if closure is not None and loss is None:
                with torch.enable_grad():
                    loss, closure = closure(), None
            if loss is not None:
                _products.checked_loss("SophiaG", loss)
            self._sampled, self._batch_size = {}, batch_size
            try:
                if super()._wants_products() and not self._is_overflow():
                    self._sampled = self._of_drawn_labels(sampled_loss)
                return super().step(closure, loss=loss)
            finally:
                self._sampled = {}

    def _of_drawn_labels(self, sampled_loss: Any) -> dict[Tensor, Tensor]:
        """Gradients of the loss with labels that were drawn."""
        if sampled_loss is None:
            raise ValueError("SophiaG: this step needs sampled_loss")
        with torch.enable_grad():
            value = sampled_loss() if callable(sampled_loss) else sampled_loss
        _products.checked_loss("SophiaG", value)
        params = [p for g in self.param_groups for p in g["params"] if p.requires_grad]
        found = _products.gradients("SophiaG", value, params, False)
        grads = [
            torch.zeros_like(_shards.local(p)) if g is None else _shards.cut(g, p)
            for p, g in zip(params, found, strict=True)
        ]
        _shards.mean_over(self._process_group, grads)
        self._check_finite("gradients", grads, params)
        return dict(zip(params, grads, strict=True))

    def _wants_products(self) -> bool:
        return False

    def _is_ready(self, p: Tensor) -> bool:
        return bool(self._sampled) or super()._is_ready(p)

    def _move(self, batch: Batch) -> None:
        drawn = [self._sampled[p] for p in batch.whole] if self._sampled else []
        self._clipped_step(batch, drawn, drawn, self._batch_size)  # squares of gradients
        if drawn:
            for p in batch.whole:
                self.state[p]["refreshes"] += 1
