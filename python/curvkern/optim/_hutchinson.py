"""What the optimizers that look at Hessian-vector products share."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from .. import _hutchinson as ops
from .. import _runtime
from . import _products, _settings, _state

Probes = Sequence[Sequence[Tensor | None]]


@dataclass
class Batch:
    """The parameters that have a gradient, and what a step knows of them.

    Products are of the first probe, then of the second, ..; none where the step looks at old
    curvature. Without z the probes are those of (seed, step).
    """

    params: list[Tensor]
    groups: list[dict[str, Any]]
    offsets: list[int]
    grads: list[Tensor]
    step: int
    scale: float = 1.0  # of gradients and products
    hz: list[Tensor] = field(default_factory=list)
    z: list[Tensor] = field(default_factory=list)
    loss: float | None = None


class HutchinsonOptimizer(Optimizer, abc.ABC):
    """Calls ``_move`` with gradients and products of the Hessian with probes."""

    #: Settings of a param group.
    _group_settings: ClassVar[tuple[str, ...]]
    #: Tensors of a parameter's state that are in the state's dtype.
    _buffers: ClassVar[tuple[str, ...]]
    _step_supports_amp_scaling = True  # GradScaler hands over grad_scale and found_inf

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        n_probes: int = 1,
        update_every: int = 1,
        seed: int = 0,
        fused: bool | None = None,
        foreach: bool | None = None,
        process_group: Any = None,
        hvp: str = "auto",
    ) -> None:
        name = type(self).__name__
        _settings.choice(name, "hvp", hvp)
        _settings.count(name, "n_probes", n_probes)
        _settings.count(name, "update_every", update_every)
        _settings.seed(name, seed)
        for setting, value in (("fused", fused), ("foreach", foreach)):
            if value is not None:
                _settings.flag(name, setting, value)
        if fused and foreach:
            raise ValueError(f"{name}: fused and foreach exclude each other")
        self._n_probes, self._update_every = n_probes, update_every
        self._fused, self._foreach = fused, foreach
        self._process_group, self._hvp = process_group, hvp
        # Numbers that go into the state: those of all subclasses are ints and floats.
        self._numbers: dict[str, Any] = {"seed": seed, "step": 0}
        super().__init__(params, defaults)

    @abc.abstractmethod
    def _move(self, batch: Batch) -> None:
        """Change parameters and state."""

    def _wants_products(self) -> bool:
        """Whether this step needs new products."""
        return bool(self._numbers["step"] % self._update_every == 0)

    def _is_ready(self, p: Tensor) -> bool:
        """Whether a parameter can move without new products: it has old ones."""
        return bool(self.state.get(p, {}).get("refreshes"))

    def _check_ways(self, loss: Tensor | None) -> None:
        """Refuse a step without what it needs."""

    def _probe_count(self) -> int:
        """Of this step."""
        return self._n_probes

    # Public --------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """More parameters, with settings of their own; their probes follow all others'."""
        name = type(self).__name__
        _settings.group(name, {**self.defaults, **param_group}, self._group_settings)
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if not p.is_floating_point():
                self.param_groups.pop()
                raise TypeError(f"{name}: parameters must be real and floating, got {p.dtype}")

    def draw_probes(self) -> list[list[Tensor]]:
        """The probes of the next step: a list for each, of one tensor for each parameter."""
        every = [p for group in self.param_groups for p in group["params"]]
        with torch.no_grad():
            return [
                _products.draw_signs(
                    every, self._offsets(), self._numbers["seed"], self._numbers["step"], i
                )
                for i in range(self._probe_count())
            ]

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss: Tensor | None = None,
        hz: Probes | None = None,
        probes: Probes | None = None,
    ) -> Any:
        """One step, from a loss, or from gradients that are there.

        Parameters
        ----------
        closure
            Returns the loss; it does not call ``backward``.
        loss
            A scalar with its graph, which is used up. ``.grad`` is neither read nor written.
            Without closure and loss the step takes ``.grad``, of
            ``loss.backward(create_graph=True)``, whose graph it drops.
        hz
            Products of the Hessian with the probes: a list for each probe, of one tensor (or
            None, zero) for each parameter. Values are taken as they are.
        probes
            Those probes, in the same form; by default :meth:`draw_probes`, and not needed
            where the sign of a product does not matter.

        Returns
        -------
        Tensor or None
            The loss.

        Raises
        ------
        ValueError
            The loss, a gradient or a product that was computed here is not finite, or the
            loss is not a scalar; parameters and state are unchanged.
        RuntimeError
            There is neither a loss nor a graph nor hz.
        """
        name = type(self).__name__
        _runtime.spare_forked_child()
        if closure is not None:
            if loss is not None:
                raise ValueError(f"{name}: closure and loss exclude each other")
            with torch.enable_grad():
                loss = closure()
        self._check_ways(loss)
        if loss is not None:
            _products.checked_loss(name, loss)
        if self._is_overflow():
            self._drop_graphs()
            return loss
        batch = self._batch(loss, hz, probes)
        if batch.params:
            self._move(batch)
        self._numbers["step"] += 1
        self._drop_graphs()
        return loss

    # Gathering -----------------------------------------------------------------------------

    def _batch(self, loss: Tensor | None, hz: Probes | None, probes: Probes | None) -> Batch:
        name = type(self).__name__
        every = [(p, group) for group in self.param_groups for p in group["params"]]
        index = [i for i, (p, _) in enumerate(every) if p.requires_grad]
        wanted = self._wants_products()
        graph = wanted and hz is None
        params = [every[i][0] for i in index]
        native = None
        if loss is not None and graph:
            native = _products.native_graph(name, loss, params, self._hvp)
        if loss is None:
            found: _products.Tensors = [p.grad for p in params]
        elif native is not None:  # its gradients come with the products
            found = [p if i in native.found else None for i, p in enumerate(params)]
        else:
            found = _products.gradients(name, loss, params, graph)
        moving = [
            (i, g)
            for i, g in zip(index, found, strict=True)
            if g is not None and (wanted or self._is_ready(every[i][0]))
        ]
        index, grads = [i for i, _ in moving], [g for _, g in moving]
        _products.check_dense(name, grads)
        params = [every[i][0] for i in index]
        offsets = self._offsets()
        batch = Batch(
            params, [every[i][1] for i in index], [offsets[i] for i in index],
            [g.detach() for g in grads], self._numbers["step"], self._scale(),
            loss=None if loss is None else float(loss.detach()),
        )  # fmt: skip
        wanted = wanted and bool(params)
        if wanted:
            batch.z = self._chosen("probes", probes, every, index)
        if native is not None:
            batch.grads, batch.hz = self._native(native, batch)
        if loss is not None:
            self._reduce(batch.grads)
            _products.check_finite(name, "gradients", batch.grads)
        if wanted:
            if hz is not None:
                batch.hz = self._chosen("hz", hz, every, index)
            else:
                if native is None:
                    batch.hz = self._computed(loss, grads, batch)
                self._reduce(batch.hz)
                _products.check_finite(name, "Hessian products", batch.hz)
        return batch

    def _computed(self, loss: Tensor | None, grads: list[Tensor], batch: Batch) -> list[Tensor]:
        name = type(self).__name__
        if loss is None:
            if not any(g.requires_grad for g in grads):
                raise RuntimeError(
                    f"{name}: gradients have no graph; call loss.backward(create_graph=True), "
                    "or pass the loss or hz to step()"
                )
            if hasattr(self, "found_inf") and getattr(self, "grad_scale", None) is None:
                raise RuntimeError(
                    f"{name}: after GradScaler.unscale_ the graph's scale is unknown; leave "
                    "unscaling to step(), or pass hz"
                )
        return _products.products(name, grads, batch.params, self._probes(batch))

    def _probes(self, batch: Batch) -> list[list[Tensor]]:
        n, count = len(batch.params), self._probe_count()
        if batch.z:
            return [batch.z[i * n : i * n + n] for i in range(count)]
        seed = self._numbers["seed"]
        return [
            _products.draw_signs(batch.params, batch.offsets, seed, batch.step, i)
            for i in range(count)
        ]

    def _native(self, graph: Any, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients and products together."""
        name, index = type(self).__name__, sorted(graph.found)
        probes = []
        for one in self._probes(batch):
            every = list(graph.params)  # in the place of what the loss does not depend on
            for i, z in zip(index, one, strict=True):
                every[i] = z
            probes.append(every)
        grads, hz = _products.native_products(name, graph, probes)
        n = len(graph.params)
        return [grads[i] for i in index], [
            hz[at + i] for at in range(0, len(hz), n) for i in index
        ]

    def _chosen(
        self, what: str, given: Probes | None, every: list[Any], index: list[int]
    ) -> list[Tensor]:
        """Of given lists the tensors of the parameters that take part."""
        if given is None:
            return []
        name, count = type(self).__name__, self._probe_count()
        if isinstance(given, Tensor) or len(given) != count:
            raise ValueError(
                f"{name}: {what} must be a list of {count} lists, one for each probe, "
                f"got {len(given)}"
            )
        chosen = []
        for one in given:
            if isinstance(one, Tensor) or len(one) != len(every):
                raise ValueError(
                    f"{name}: {what} must have {len(every)} tensors for each probe, "
                    f"got {len(one)}"
                )
            for i in index:
                p, tensor = every[i][0], one[i]
                tensor = torch.zeros_like(p) if tensor is None else tensor.detach()
                if tensor.shape != p.shape:
                    raise ValueError(
                        f"{name}: {what} has shape {tuple(tensor.shape)} for a parameter of "
                        f"shape {tuple(p.shape)}"
                    )
                chosen.append(tensor.to(p))
        return chosen

    def _offsets(self) -> list[int]:
        """Of all parameters: how many elements come before."""
        offsets, total = [], 0
        for group in self.param_groups:
            for p in group["params"]:
                offsets.append(total)
                total += p.numel()
        return offsets

    def _reduce(self, tensors: list[Tensor]) -> None:
        """The mean over the ranks of the process group, in one message for each dtype."""
        if self._process_group is None:
            return
        ranks = dist.get_world_size(self._process_group)
        for dtype in sorted({t.dtype for t in tensors}, key=str):
            index = [i for i, t in enumerate(tensors) if t.dtype is dtype]
            flat = torch.cat([tensors[i].reshape(-1) for i in index])
            dist.all_reduce(flat, group=self._process_group)
            flat /= ranks
            parts = flat.split([tensors[i].numel() for i in index])
            for i, part in zip(index, parts, strict=True):
                tensors[i] = part.view(tensors[i].shape)

    def _uses_native(self, p: Tensor) -> bool:
        if self._foreach or _runtime.backend() == "reference":
            return False
        native = _products.is_native(p)
        if self._fused and not native:
            raise RuntimeError(
                f"{type(self).__name__}: fused=True needs contiguous float32, float64 or "
                f"bfloat16 parameters on the CPU, got {p.dtype} on {p.device}"
            )
        return native

    def _mean_over_probes(self, batch: Batch, probes: slice = slice(None)) -> list[Tensor]:
        """D = mean of z hz, at the scale of the loss."""
        every = range(self._probe_count())[probes]
        D = _products.mean_over_probes(
            batch.hz, batch.z, batch.params, batch.offsets, self._numbers["seed"], batch.step,
            every,
        )  # fmt: skip
        if batch.scale != 1:
            torch._foreach_mul_(D, batch.scale)
        return D

    def _gradients(self, batch: Batch) -> list[Tensor]:
        """In the state's dtype, at the scale of the loss."""
        return [
            g.to(ops.state_dtype(p.dtype)) * batch.scale
            for p, g in zip(batch.params, batch.grads, strict=True)
        ]

    def _start(self, p: Tensor, state: dict[str, Any], names: Sequence[str]) -> None:
        """A state of zeros."""
        state["step"] = state["refreshes"] = 0
        for name in names:
            state[name] = torch.zeros(p.shape, dtype=ops.state_dtype(p.dtype), device=p.device)

    def _states(self, batch: Batch) -> list[dict[str, Any]]:
        """Of the parameters that move, after the counts of this step."""
        states = []
        for p in batch.params:
            state = self.state[p]
            if not state:
                self._start(p, state, self._buffers)
            state["step"] += 1
            state["refreshes"] += bool(batch.hz)
            states.append(state)
        return states

    def _is_overflow(self) -> bool:
        return bool(getattr(self, "found_inf", 0))

    def _scale(self) -> float:
        scale = getattr(self, "grad_scale", None)
        return 1.0 if scale is None else 1 / float(scale)

    def _drop_graphs(self) -> None:
        """A gradient with a graph that leads to its parameter keeps both alive for ever."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.requires_grad:
                    p.grad = p.grad.detach()

    # State ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As of any optimizer, with "hutchinson": the seed, the step, and other numbers."""
        return {**super().state_dict(), "hutchinson": dict(self._numbers)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bit by bit from a state, which is checked before anything changes."""
        name = type(self).__name__
        numbers = _state.checked_numbers(name, state_dict, self._numbers)
        before = self.__getstate__()
        try:
            super().load_state_dict(dict(state_dict))
            for group in self.param_groups:
                _settings.group(name, group, self._group_settings)
            _state.restore(name, self, state_dict, self._buffers)
        except Exception:
            self.__setstate__(before)
            raise
        self._numbers = numbers

    def __getstate__(self) -> dict[str, Any]:
        # Optimizer's keeps three attributes, whatever else there is.
        own = {key: value for key, value in self.__dict__.items() if key in self._own()}
        return {**super().__getstate__(), **own}

    def _own(self) -> tuple[str, ...]:
        return (
            "_n_probes",
            "_update_every",
            "_fused",
            "_foreach",
            "_process_group",
            "_hvp",
            "_numbers",
        )
