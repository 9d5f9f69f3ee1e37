"""The M-FAC optimizer."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import _runtime
from ._mfac_checks import check_momentum, check_settings, check_state
from ._mfac_windows import Settings, Window, local

GROUPINGS = ("global", "per_group", "per_param")


class MFAC(Optimizer):
    r"""Descent along gradients preconditioned by a window of the last m of them.

    With g the gradient of all parameters, flattened, and :math:`\mu` the momentum,

    .. math::
        F = \lambda I + \frac1m \sum_{i=t-m+1}^{t} g_i g_i^\top, \qquad
        b_t = \mu\, b_{t-1} + F^{-1} g_t, \qquad w_t = w_{t-1} - \eta\, b_t .

    The current gradient is one of the window, so that :math:`F^{-1} g_t` is a combination of
    m gradients whose terms do not cancel, whatever the damping is. A step reads the window,
    m d numbers, twice. Gradients of noise have :math:`F^{-1} g \approx m g / |g|^2`: ``lr``
    times ``window`` over the gradient's norm is about the length of a step.

    Parameters
    ----------
    params
        Parameters, or dicts of them and their own settings. Those with equal ``damping``,
        ``window`` and ``window_dtype`` can share a window.
    lr
        Step :math:`\eta`, not negative.
    momentum
        :math:`\mu` in [0, 1), on the preconditioned update.
    weight_decay
        Not negative. Added times w to the gradient, inside the window, as in [1]_; times ``lr``
        taken off the weights if ``decoupled_weight_decay``.
    damping
        :math:`\lambda`, positive; a change of ``param_groups`` applies from the next step.
    window
        m, the number of gradients kept.
    window_dtype
        float32, float64 or bfloat16: how they are stored, m d numbers. What is preconditioned
        is the gradient rounded to it.
    warmup
        Over so many steps the step grows linearly to ``lr``.
    grouping
        "global": one window for all parameters; "per_group", "per_param": one for each, F is
        block-diagonal.
    maximize
        Ascend.
    process_group
        Ranks that share the columns of the window. Each holds the local parts of sharded
        parameters (``torch.distributed.fsdp.fully_shard``), no gradient is gathered, and m
        numbers are exchanged; of parameters that all ranks hold, as under
        ``DistributedDataParallel``, each keeps the columns of an equal share, and the updates
        are gathered. Without it each rank under DDP has a whole window.
    in_backward
        Multiply the gradient of each parameter with its columns of the window as soon as
        backward has it, by a hook, not in the step. The result is the same but for rounding;
        gradients that change between backward and step are multiplied again. In one stream
        this saves no time: the training step of ``bench/cases/mfac_step.py`` takes 1.2 times
        as long, as the columns are read all the same.

    Raises
    ------
    ValueError
        A setting is out of range or differs within a window. From :meth:`step`: a gradient has
        an element that is not finite in the window's dtype, or a setting was changed to one
        that is out of range; parameters and windows are unchanged.
    TypeError
        A setting or parameter is of another kind; a gradient is sparse.

    Notes
    -----
    Windows are made at the first step. A parameter without a gradient counts as one with zeros,
    but is not decayed. Parameters added after the first step get a window of their own.

    ``state_dict`` has the windows under "windows", of this rank's columns, and can be loaded
    with ``weights_only=True``: training goes on bit by bit.

    References
    ----------
    .. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of
       Second-Order Information", NeurIPS 2021, arXiv:2107.03356.

    Examples
    --------
    Two features, one a hundredth of the other in scale, and noise of variance 0.01: a gradient
    step that is stable in the one learns nothing of the other.

    >>> import torch
    >>> from curvkern.optim import MFAC
    >>> def mean_square(make):
    ...     generator = torch.Generator().manual_seed(0)
    ...     X = torch.randn(1024, 2, generator=generator) * torch.tensor([1.0, 0.01])
    ...     y = X @ torch.tensor([1.0, 100.0])
    ...     y += 0.1 * torch.randn(1024, generator=generator)
    ...     w = torch.zeros(2, requires_grad=True)
    ...     optimizer = make([w])
    ...     for batch in torch.randint(1024, (150, 32), generator=generator):
    ...         optimizer.zero_grad()
    ...         (X[batch] @ w - y[batch]).square().mean().backward()
    ...         optimizer.step()
    ...     return round((X @ w.detach() - y).square().mean().item(), 2)
    >>> mean_square(lambda p: MFAC(p, lr=0.1, momentum=0.0, damping=1e-6, window=20))
    0.01
    >>> mean_square(lambda p: torch.optim.SGD(p, lr=0.3))
    1.07
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        damping: float = 1e-5,
        window: int = 128,
        window_dtype: torch.dtype = torch.float32,
        warmup: int = 0,
        grouping: str = "global",
        maximize: bool = False,
        *,
        process_group: Any = None,
        in_backward: bool = False,
    ) -> None:
        if not isinstance(in_backward, bool):
            raise TypeError(
                f"MFAC: in_backward must be a bool, got {type(in_backward).__name__}"
            )
        if grouping not in GROUPINGS:
            raise ValueError(
                f"MFAC: grouping must be one of {', '.join(GROUPINGS)}, got {grouping!r}"
            )
        self._grouping = grouping
        self._process_group = process_group
        self._in_backward = in_backward
        self._windows: list[Window] = []
        self._lock = threading.RLock()
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "damping": damping,
            "window": window,
            "window_dtype": window_dtype,
            "warmup": warmup,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """More parameters; after the first step they get a window of their own."""
        with self._lock:
            check_settings({**self.defaults, **param_group})
            super().add_param_group(param_group)
            params = self.param_groups[-1]["params"]
            kinds = [p.dtype for p in params if not p.is_floating_point()]
            if kinds or len(set(params)) < len(params):
                self.param_groups.pop()
            if kinds:
                raise TypeError(f"MFAC: parameters must be real and floating, got {kinds[0]}")
            if len(set(params)) < len(params):
                raise ValueError("MFAC: a parameter is twice in one param group")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what ``closure``, which recomputes the loss, returns."""
        loss = None
        if closure is not None:
            # Not under the lock, for which hooks of a backward in another thread may wait.
            with torch.enable_grad():
                loss = closure()
        with self._lock, ExitStack() as held:
            _runtime.spare_forked_child()
            for group in self.param_groups:
                check_settings(group)
            windows = self._windows + self._new_windows()
            for window in windows:
                held.enter_context(window.lock)
            rows = [window.read() for window in windows]
            for window, row in zip(windows, rows, strict=True):
                bad = int(window.not_finite(row))
                if bad:
                    raise ValueError(
                        f"MFAC: gradients must be finite in {row.dtype}, got {bad} of "
                        f"{row.numel()} elements that are not; nothing was changed"
                    )
            self._windows = windows
            for window, row in zip(windows, rows, strict=True):
                for p, settings, update in window.push(row):
                    self._move(p, settings, update, window.steps)
        return loss

    def _move(self, p: Tensor, settings: Settings, update: Tensor, steps: int) -> None:
        weight = local(p)
        lr = float(settings["lr"])
        if steps < settings["warmup"]:
            lr *= steps / settings["warmup"]
        if settings["decoupled_weight_decay"] and p.grad is not None:
            weight.mul_(1 - lr * settings["weight_decay"])
        update = update.view_as(weight).to(weight.dtype)
        if settings["momentum"]:
            state = self.state[p]
            if "momentum_buffer" in state:
                update = state["momentum_buffer"].mul_(settings["momentum"]).add_(update)
            else:
                state["momentum_buffer"] = update = update.clone()
        weight.add_(update, alpha=-lr)

    def state_dict(self) -> dict[str, Any]:
        """As of any optimizer, with "windows": their parameters, steps taken and rows."""
        with self._lock:
            state = super().state_dict()
            number = {p: i for i, (p, _) in enumerate(self._everyone())}
            state["windows"] = [
                {
                    "params": [number[p] for p, _ in window.params],
                    "steps": window.steps,
                    "fisher": window.fisher.state_dict(),
                }
                for window in self._windows
            ]
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state of an optimizer of the same parameters.

        Raises
        ------
        TypeError, ValueError
            For a state that does not fit or cannot be true; the optimizer is then unchanged.
        """
        with self._lock:
            everyone = self._everyone()
            check_state(state_dict, len(everyone))
            before = self.__getstate__()
            try:
                super().load_state_dict(dict(state_dict))
                for group in self.param_groups:
                    check_settings(group)
                for p, _ in everyone:
                    if self.state.get(p):
                        # A copy: loading shares memory with what was loaded.
                        momentum = check_momentum(self.state[p], local(p).shape)
                        self.state[p]["momentum_buffer"] = momentum.clone()
                everyone = self._everyone()
                windows = [self._loaded(entry, everyone) for entry in state_dict["windows"]]
            except Exception:
                self.__setstate__(before)
                raise
            self._windows = windows

    def __getstate__(self) -> dict[str, Any]:
        # Optimizer's keeps three attributes, whatever else there is. A lock is not copied.
        own = ("_grouping", "_in_backward", "_process_group", "_windows")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __deepcopy__(self, memo: dict[int, Any]) -> MFAC:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        memo[id(self._process_group)] = self._process_group  # the same ranks
        with self._lock:
            copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_lock", threading.RLock())

    def _everyone(self) -> list[tuple[Tensor, Settings]]:
        return [(p, group) for group in self.param_groups for p in group["params"]]

    def _new_windows(self) -> list[Window]:
        """For parameters that have none yet."""
        known = {p for window in self._windows for p, _ in window.params}
        fresh = [(p, group) for p, group in self._everyone() if p not in known]
        if not fresh:
            return []
        if self._grouping == "global":
            parts = [fresh]
        elif self._grouping == "per_param":
            parts = [[one] for one in fresh]
        else:
            parts = [[one for one in fresh if one[1] is group] for group in self.param_groups]
        return [self._window(part) for part in parts if part]

    def _window(self, params: list[tuple[Tensor, Settings]]) -> Window:
        return Window(params, self._process_group, self._in_backward)

    def _loaded(self, entry: Any, everyone: list[tuple[Tensor, Settings]]) -> Window:
        window = self._window([everyone[i] for i in entry["params"]])
        window.steps = entry["steps"]
        window.fisher.load_state_dict(entry["fisher"])
        return window
