"""Random vectors, and what leaving one of them out makes of a sketch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..optim import _products, _settings
from ._hvp import Hessian, checked_vectors

DISTRIBUTIONS = ("rademacher", "gaussian")


class Probes:
    """The probes of one call: drawn from a generator, or given."""

    def __init__(
        self,
        hessian: Hessian,
        n_probes: int,
        distribution: str,
        generator: torch.Generator | None,
        given: Any,
    ) -> None:
        function = hessian.function
        _settings.count(function, "n_probes", n_probes)
        if distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"{function}: distribution must be one of {', '.join(DISTRIBUTIONS)}, "
                f"got {distribution!r}"
            )
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"{function}: generator must be a torch.Generator, got "
                f"{type(generator).__name__}"
            )
        self.hessian, self.distribution, self.generator = hessian, distribution, generator
        self.given = None
        if given is not None:
            self.given = [checked_vectors(function, "probes", v, hessian.params) for v in given]
            n_probes = len(self.given)
            _settings.count(function, "the number of probes", n_probes)
        self.count = n_probes
        self.is_drawn = given is None and distribution == "rademacher"
        # Signs are Philox's, of which torch's generator gives the key.
        self.seed = int(
            torch.randint(1 << 62, (), generator=generator,
                          device=None if generator is None else generator.device)
        ) if self.is_drawn else 0  # fmt: skip

    def __iter__(self) -> Iterator[list[Tensor]]:
        params = self.hessian.params
        for i in range(self.count):
            if self.given is not None:
                yield self.given[i]
            elif self.is_drawn:
                with torch.no_grad():
                    yield _products.draw_signs(params, self.hessian.offsets, self.seed, 0, i)
            else:
                yield [self._normal(p) for p in params]

    def matrix(self) -> Tensor:
        """As columns, float64."""
        return torch.stack([self.hessian.flat(z) for z in self], dim=1)

    def _normal(self, p: Tensor) -> Tensor:
        device = p.device if self.generator is None else self.generator.device
        return torch.randn(
            p.shape, dtype=p.dtype, device=device, generator=self.generator
        ).to(p.device)  # fmt: skip


class Sketch:
    """Y = A W, an orthonormal U of its range, Z = A U, and U without one column of W.

    The range of Y without column i is that of U without a direction, which is column i of
    ``missing`` in U's coordinates, or zero where the other columns span all of it.
    """

    def __init__(self, hessian: Hessian, W: Tensor) -> None:
        self.W, self.Y = W, hessian.times_columns(W)
        U, s, V = torch.linalg.svd(self.Y, full_matrices=False)
        wide = hessian.dtype is torch.float64
        rank = int((s > (1e-13 if wide else 1e-6) * s.max()).sum()) if s.numel() else 0
        self.U, C = U[:, :rank], s[:rank, None] * V[:rank]
        self.Z = hessian.times_columns(self.U)
        self.missing = torch.zeros(rank, W.shape[1], dtype=torch.float64, device=W.device)
        for i in range(W.shape[1]):
            rest = torch.cat([C[:, :i], C[:, i + 1 :]], dim=1)
            left, t, _ = torch.linalg.svd(rest, full_matrices=True)
            tolerance = (1e-13 if wide else 1e-6) * float(s.max()) if rank else 0.0
            if int((t > tolerance).sum()) < rank:
                self.missing[:, i] = left[:, -1]


def check_choice(function: str, name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(
            f"{function}: {name} must be one of {', '.join(choices)}, got {value!r}"
        )
