"""AdaHessian."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from ..reference import hutchinson as reference
from . import _settings, _shards
from ._batch import Batch, Each
from ._hutchinson import HutchinsonOptimizer


class AdaHessian(HutchinsonOptimizer):
    r"""Adam with the diagonal of the Hessian in place of the squared gradient.

    With random signs z, :math:`z \odot Hz` estimates the diagonal. Averaged over the spatial
    dimensions of a parameter, its square takes the place of Adam's second moment:

    .. math::
        D = \overline{|z \odot Hz|}, \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) D^2, \\
        p \leftarrow p - \eta \Bigl(\frac{m / (1 - \beta_1^t)}
        {\bigl(\sqrt v / \sqrt{1 - \beta_2^s}\bigr)^k + \epsilon} + \lambda p\Bigr) .

    All tensors of all groups are moved by one compiled call, which passes once over p, g, Hz,
    m and v.

    Parameters
    ----------
    params
        Parameters, or dicts of them and their own settings.
    lr
        :math:`\eta`, not negative.
    betas
        :math:`\beta_1, \beta_2` in [0, 1).
    eps
        :math:`\epsilon`, added after the power.
    weight_decay
        :math:`\lambda`, decoupled, times ``lr``.
    hessian_power
        k in [0, 2].
    n_probes
        Probes of a step; their mean D, with signs, comes before the absolute value.
    update_every
        Products are computed in the first of so many steps. A parameter that appears in
        another one waits for them.
    lazy
        In the other steps: "ema_on_refresh" leaves v as it is; "ema_stale" puts the last D into
        it again.
    bias
        s is the number of averages v has seen ("refresh") or that of steps ("step").
    spatial
        Means of :math:`|D|`: "none"; "conv", over the dimensions from the third on; "row", over
        the last of two or more; or the lengths of flat blocks of parameters of 1, 2, 3, and 4
        or more dimensions, of which the last block may be shorter. A length -1 stands for none
        of one dimension, the last of two or three, those from the third on of more.
    average
        "abs": means of :math:`|D|`, as in the authors' programs; "signed": the absolute value
        of means of D, as in the text of [1]_.
    update
        "atan2": :math:`\operatorname{atan2}` of numerator and denominator in place of their
        quotient; there is no eps.
    seed
        Of the probes, in [0, 2^63). A sign depends on the seed, the step, the probe and the
        element's place among all parameters alone: with one seed, ranks draw the same.
    fused, foreach
        Force the compiled step or plain PyTorch; by default, compiled where it can.
    maximize
        Ascend.
    process_group
        Ranks to average gradients and products over, when the step gets a loss. Under
        ``DistributedDataParallel`` compute that loss within ``no_sync()``.
    hvp
        How products of a loss are computed: "native", "reverse" or "auto", as the modes of
        :func:`curvkern.curvature.hvp`.

    Raises
    ------
    TypeError, ValueError
        A setting is of another kind or out of range.

    Notes
    -----
    :meth:`step` takes a closure or a ``loss``, or the gradients of
    ``loss.backward(create_graph=True)``, or products ``hz``. Parameters that the loss does not
    depend on stay as they are; where the gradient does not depend on a parameter, D is 0.

    With ``GradScaler`` use ``scaler.scale(loss).backward(create_graph=True)`` and
    ``scaler.step(optimizer)`` without ``unscale_``: products have the scale of the loss.

    The state of float64 parameters is float64, else float32. ``state_dict`` holds the seed and
    the step, loads with ``weights_only=True``, and training goes on bit by bit.

    References
    ----------
    .. [1] Z. Yao, A. Gholami, S. Shen, M. Mustafa, K. Keutzer, M. W. Mahoney, "ADAHESSIAN: An
       Adaptive Second Order Optimizer for Machine Learning", AAAI 2021, arXiv:2006.00719.

    Examples
    --------
    A valley whose walls are 100 times as steep as its floor:

    >>> import torch
    >>> from curvkern.optim import AdaHessian
    >>> p = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> optimizer = AdaHessian([p], lr=0.3)
    >>> for _ in range(40):
    ...     loss = 50 * p[0] ** 2 + 0.5 * p[1] ** 2
    ...     _ = optimizer.step(loss=loss)
    >>> bool((p.abs() < 0.05).all())
    True
    """

    _group_settings: ClassVar[tuple[str, ...]] = (
        "lr", "betas", "eps", "weight_decay", "hessian_power", "spatial", "average", "update",
        "maximize",
    )  # fmt: skip
    _buffers: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_hessian_diag_sq", "hessian_diag")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        hessian_power: float = 1.0,
        *,
        n_probes: int = 1,
        update_every: int = 1,
        lazy: str = "ema_on_refresh",
        bias: str = "refresh",
        spatial: str | Sequence[int] = "none",
        average: str = "abs",
        update: str = "standard",
        seed: int = 0,
        fused: bool | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        process_group: Any = None,
        hvp: str = "auto",
    ) -> None:
        _settings.choice("AdaHessian", "lazy", lazy)
        _settings.choice("AdaHessian", "bias", bias)
        self._lazy, self._bias = lazy, bias
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "hessian_power": hessian_power,
            "spatial": spatial,
            "average": average,
            "update": update,
            "maximize": maximize,
        }
        super().__init__(
            params, defaults, n_probes=n_probes, update_every=update_every, seed=seed,
            fused=fused, foreach=foreach, process_group=process_group, hvp=hvp,
        )  # fmt: skip

    def _own(self) -> tuple[str, ...]:
        return (*super()._own(), "_lazy", "_bias")

    def _kept(self) -> tuple[str, ...]:
        return self._buffers[: 3 if self._lazy == "ema_stale" else 2]

    def _move(self, batch: Batch) -> None:
        blocks = Each(
            _shards.block("AdaHessian", p, group["spatial"])
            for p, group in zip(batch.whole, batch.groups, strict=True)
        )
        states = self._states(batch, self._kept())
        states += [[]] * (3 - len(states))
        own = batch.own
        rows, numbers = self._rows_of(
            [
                (id(group), state["step"], state["refreshes"])
                for group, state in zip(batch.groups, own, strict=True)
            ],
            lambda i: self._row(batch.groups[i], own[i]),
        )
        self._run(
            "step", batch,
            [batch.params, batch.grads, batch.hz, batch.z, *states],
            blocks, batch.offsets, rows, numbers, batch.scale, True, *self._probes_of(batch),
        )  # fmt: skip

    def _row(self, group: dict[str, Any], state: dict[str, Any]) -> reference.Row:
        beta1, beta2 = group["betas"]
        averages = state["step"]
        if self._bias == "refresh" and self._lazy == "ema_on_refresh":
            averages = state["refreshes"]
        return reference.Row(
            float(group["lr"]),
            float(beta1),
            float(beta2),
            float(group["eps"]),
            float(group["weight_decay"]),
            float(group["hessian_power"]),
            1 - beta1 ** state["step"],
            1 - beta2**averages,
            float(group["maximize"]),
            float(group["update"] == "atan2"),
            float(group["average"] == "signed"),
        )
