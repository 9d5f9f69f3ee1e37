"""What the optimizers that look at Hessian-vector products share."""

from __future__ import annotations

import abc
import copy
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import _hutchinson as ops
from .. import _runtime
from .._arguments import memory_error
from .._tangents import HookError
from ..reference import hutchinson as reference
from . import _batch, _products, _settings, _shards, _state
from ._batch import Batch, Each, Probes


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
        self._lock = threading.RLock()
        super().__init__(params, defaults)

    def _kept(self) -> tuple[str, ...]:
        """The tensors of a state that these settings need."""
        return self._buffers

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
        with self._lock:
            _settings.group(name, {**self.defaults, **param_group}, self._group_settings)
            super().add_param_group(param_group)
            try:
                for p in self.param_groups[-1]["params"]:
                    _batch.check_parameter(name, p)
                    _shards.check(name, p)
            except Exception:
                self.param_groups.pop()
                raise

    def draw_probes(self) -> list[list[Tensor]]:
        """The probes of the next step: a list for each, of one tensor for each parameter."""
        with self._lock, torch.no_grad():
            every = [p for group in self.param_groups for p in group["params"]]
            return [self._drawn(every, self._offsets(), i) for i in range(self._probe_count())]

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
        with self._lock:
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
            params, [_shards.local(p) if _shards.is_sharded(p) else p for p in params],
            [every[i][1] for i in index],
            Each(offsets[i] for i in index),
            [
                _shards.cut(g, p) if g.requires_grad or _shards.is_sharded(p) else g
                for g, p in zip(grads, params, strict=True)
            ],
            self._numbers["step"], self._scale(),
            loss=None if loss is None else float(_shards.local(loss.detach())),
        )  # fmt: skip
        wanted = wanted and bool(params)
        if wanted:
            batch.z = self._chosen("probes", probes, index)
        if native is not None:
            assert loss is not None
            try:
                batch.grads, batch.hz = self._native(native, batch)
            except HookError:
                if self._hvp == "native":
                    raise
                native = None
                found = _products.gradients(name, loss, params, True)
                grads = [
                    torch.zeros_like(p) if g is None else g
                    for p, g in zip(params, found, strict=True)
                ]
                batch.grads = [g.detach() for g in grads]
        if loss is not None:
            _shards.mean_over(self._process_group, batch.grads)
            self._check_finite("gradients", batch.grads, params)
        if wanted:
            if hz is not None:
                batch.hz = self._chosen("hz", hz, index)
            else:
                if native is None:
                    batch.hz = self._computed(loss, grads, batch)
                _shards.mean_over(self._process_group, batch.hz)
                self._check_finite("Hessian products", batch.hz, params)
        return batch

    def _check_finite(self, what: str, tensors: list[Tensor], params: list[Tensor]) -> None:
        """All ranks that hold parts of the parameters refuse what one of them sees."""
        name = type(self).__name__
        if _shards.groups(params):
            if _shards.any_over(params, not ops.is_finite(tensors)):
                raise ValueError(
                    f"{name}: {what} must be finite on all ranks; nothing was changed"
                )
        else:
            _products.check_finite(name, what, tensors)

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
        hz = _products.products(name, grads, batch.whole, self._probes(batch))
        n = len(batch.whole)
        return [_shards.cut(one, batch.whole[i % n]) for i, one in enumerate(hz)]

    def _probes(self, batch: Batch) -> list[list[Tensor]]:
        n, count = len(batch.params), self._probe_count()
        if batch.z:
            return [
                [
                    _shards.like(part, p)
                    for part, p in zip(batch.z[i * n : i * n + n], batch.whole, strict=True)
                ]
                for i in range(count)
            ]
        return [self._drawn(batch.whole, batch.offsets, i) for i in range(count)]

    def _drawn(self, params: list[Tensor], offsets: list[int], probe: int) -> list[Tensor]:
        """A probe of this step."""
        signs = _products.draw_signs(
            [_shards.local(p) for p in params], offsets, self._numbers["seed"],
            self._numbers["step"], probe,
        )  # fmt: skip
        return [_shards.like(z, p) for z, p in zip(signs, params, strict=True)]

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

    def _chosen(self, what: str, given: Probes | None, index: list[int]) -> list[Tensor]:
        """Of given lists the tensors of the parameters that take part."""
        if given is None:
            return []
        name, count = type(self).__name__, self._probe_count()
        every = [p for group in self.param_groups for p in group["params"]]
        return _batch.chosen(name, what, given, count, every, index)

    def _offsets(self) -> list[int]:
        """Of all parameters: how many elements come before what this rank holds."""
        offsets, total = [], 0
        for group in self.param_groups:
            for p in group["params"]:
                before = _shards.elements(p, _shards.rows(p)[0]) if _shards.is_sharded(p) else 0
                offsets.append(total + before)
                total += p.numel()
        return offsets

    def _compiled(self, params: list[Tensor]) -> list[bool]:
        """Which parameters a compiled step moves."""
        kernels: dict[torch.device, bool] = {}
        found = []
        for p in params:
            device = p.device
            if device not in kernels:
                kernels[device] = not self._foreach and _runtime.compiled(device)
            native = kernels[device] and ops.is_storable(p)
            if self._fused and not native and _runtime.backend() == "native":
                raise RuntimeError(
                    f"{type(self).__name__}: fused=True needs contiguous float32, float64 or "
                    f"bfloat16 parameters on a device with kernels, got {p.dtype} on {device}"
                )
            found.append(native)
        return found

    def _run(
        self, name: str, batch: Batch, tensors: list[list[Tensor]], *rest: Any
    ) -> list[tuple[list[int], Any]]:
        """Run an operation of the family, compiled where it can be.

        Of ``rest``, lists of as many numbers as there are parameters are cut like tensors.
        Returns the parameters of each call, and what it returned.
        """
        count = len(batch.params)
        parts: dict[tuple[bool, torch.device, bool], list[int]] = {}
        for i, native in enumerate(self._compiled(batch.params)):
            p = batch.params[i]
            key = (native, p.device, p is not batch.whole[i])
            parts.setdefault(key, []).append(i)
        found = []
        for (native, *_), index in parts.items():
            run: Callable[..., Any] = (
                getattr(torch.ops.curvkern, f"hutchinson_{name}")
                if native
                else getattr(reference, name)
            )
            numbers = (
                [x[i] for i in index] if isinstance(x, Each) and len(index) < count else x
                for x in rest
            )
            own = (_batch.part(t, index, count) for t in tensors)
            found.append((index, run(*own, *numbers)))
        return found

    def _rows_of(
        self, keys: Sequence[Any], row: Callable[[int], Sequence[float]]
    ) -> tuple[Each, list[float]]:
        """Which row of settings each parameter has, and all rows, one after the other.

        Parameters of one key share the row that ``row(parameter's place)`` makes.
        """
        known: dict[Any, int] = {}
        rows, numbers = Each(), list[float]()
        for i, key in enumerate(keys):
            if key not in known:
                known[key] = len(known)
                numbers.extend(row(i))
            rows.append(known[key])
        return rows, numbers

    def _probes_of(self, batch: Batch) -> tuple[int, int]:
        """Seed and step, of which the probes are."""
        return self._numbers["seed"], batch.step

    def _start(self, p: Tensor, names: Sequence[str]) -> dict[str, Any]:
        """A state of zeros."""
        part, dtype = _shards.local(p), ops.state_dtype(p.dtype)
        try:
            with torch.inference_mode(False):  # later steps write to it outside of that mode
                zeros = [torch.zeros(part.shape, dtype=dtype, device=p.device) for _ in names]
        except RuntimeError as error:
            raise memory_error(type(self).__name__, part.shape, error) from error
        tensors = {name: _shards.like(z, p) for name, z in zip(names, zeros, strict=True)}
        return {"step": 0, "refreshes": 0, **tensors}

    def _states(self, batch: Batch, names: Sequence[str]) -> list[list[Tensor]]:
        """For each name a list of the states of the parameters that move, after counting."""
        batch.own = []
        for p in batch.whole:  # what may fail before anything counts
            state = self.state.get(p)
            if not state:
                state = self.state[p] = self._start(p, names)
            batch.own.append(state)
        is_new = bool(batch.hz)
        for state in batch.own:
            state["step"] += 1
            state["refreshes"] += is_new
        return [[_shards.local(state[name]) for state in batch.own] for name in names]

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
        with self._lock:
            return {**super().state_dict(), "hutchinson": dict(self._numbers)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bit by bit from a state, which is checked before anything changes."""
        name = type(self).__name__
        with self._lock:
            numbers = _state.checked_numbers(name, state_dict, self._numbers)
            before = self.__getstate__()
            try:
                super().load_state_dict(dict(state_dict))
                for group in self.param_groups:
                    _settings.group(name, group, self._group_settings)
                _state.restore(name, self, state_dict, self._buffers, self._kept())
            except Exception:
                self.__setstate__(before)
                raise
            self._numbers = numbers

    def __deepcopy__(self, memo: dict[int, Any]) -> HutchinsonOptimizer:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        memo[id(self._process_group)] = self._process_group  # the same ranks
        with self._lock:
            copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_lock", threading.RLock())

    def __getstate__(self) -> dict[str, Any]:
        # Optimizer's keeps three attributes, whatever else there is. A lock is not copied.
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
