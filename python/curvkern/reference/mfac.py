"""Inverse Fisher matrices of a window of gradients by dense float64 algebra, in plain PyTorch.

    F = damping I + (1/n) sum_i g_i g_i',    G = (g_1, ..., g_c)', oldest first, K = G G'

in two formulas that share nothing but G: "woodbury",

    F^-1 v = (v - G' (n damping I + K)^-1 G v) / damping,

and "direct", a Cholesky factor of the (d, d) matrix F. Below them the recursions of the paper
as they are published, the rivals of the benchmarks.

E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
Information", NeurIPS 2021.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Fisher(abc.ABC):
    """What can be asked of F; results are float64. Blocks of columns make F block-diagonal."""

    def __init__(
        self,
        d: int,
        damping: float,
        block_size: int | None,
        method: str,
        process_group: Any = None,
    ) -> None:
        for name, size in (("d", d), ("block_size", block_size)):
            if size is not None and size < 1:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be at least 1, got {size}"
                )
        if method not in ("woodbury", "direct"):
            raise ValueError(f"method must be 'woodbury' or 'direct', got {method!r}")
        if process_group is not None and (method == "direct" or block_size is not None):
            raise ValueError("process_group goes with method 'woodbury' and one block")
        self.d = d
        self.block_size = block_size
        self._method = method
        self._group = process_group
        self.set_damping(damping)

    def set_damping(self, damping: float) -> None:
        self.damping = self._checked_damping(damping)

    def ihvp(
        self,
        v: Tensor,
        *,
        damping: float | None = None,
        out: Tensor | None = None,
        return_info: bool = False,
    ) -> Any:
        """F^-1 v for v of shape (d,) or (k, d); info is the relative residual of each."""
        at = self.damping if damping is None else self._checked_damping(damping)
        many = self._vectors("v", v)
        x = torch.cat([self._solve(G, many[:, s], at) for s, G in self._blocks()], 1)
        result = x.reshape(v.shape)
        if out is not None:
            result = out.copy_(result)
        if not return_info:
            return result
        back = torch.cat([self._times(G, x[:, s], at) for s, G in self._blocks()], 1)
        off = self._sum((back - many).square().sum(1))
        size = self._sum(many.square().sum(1))
        residual = torch.where(size > 0, (off / size).sqrt(), off)
        return result, {"residual": residual.reshape(v.shape[:-1])}

    def diag_inverse(self) -> Tensor:
        """Diagonal of F^-1, (d,)."""
        return torch.cat([self._inverse_diagonal(G) for _, G in self._blocks()])

    def element(self, i: int, j: int) -> float:
        """One element of F^-1."""
        for index in (i, j):
            if not 0 <= index < self.d:
                raise IndexError(f"element: index must be in [0, {self.d}), got {index}")
        unit = torch.zeros(self.d, dtype=torch.float64, device=self._rows().device)
        unit[j] = 1
        return float(self.ihvp(unit)[i])

    def elements(self, i: Tensor, j: Tensor) -> Tensor:
        """Elements of F^-1 at index tensors of one shape after broadcasting."""
        inverse = self.ihvp(torch.eye(self.d, dtype=torch.float64, device=self._rows().device))
        return inverse[i, j]

    def quad_form(self, v: Tensor) -> Tensor:
        """v' F^-1 v, a 0-d tensor or (k,)."""
        return self._sum((self.ihvp(v) * v.double()).sum(-1))

    def logdet(self) -> float:
        """log det F."""
        return float(sum(self._log_determinant(G) for _, G in self._blocks()))

    def gram(self) -> Tensor:
        """K = G G', (c, c), or (blocks, c, c) of a block-diagonal F."""
        grams = torch.stack([self._sum(G @ G.T) for _, G in self._blocks()])
        return grams if self.block_size is not None else grams[0]

    def matrix(self) -> Tensor:
        """F itself, (d, d)."""
        return torch.block_diag(*(self._dense(G, self.damping) for _, G in self._blocks()))

    @abc.abstractmethod
    def _rows(self) -> Tensor:
        """G in float64, (c, d)."""

    @abc.abstractmethod
    def _norm(self) -> int:
        """n"""

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        G = self._rows()
        step = self.d if self.block_size is None else self.block_size
        for start in range(0, self.d, step):
            columns = slice(start, min(start + step, self.d))
            yield columns, G[:, columns]

    def _sum(self, t: Tensor) -> Tensor:
        """The sum over the ranks that share the columns."""
        if self._group is not None:
            dist.all_reduce(t, group=self._group)
        return t

    def _system(self, G: Tensor, damping: float) -> Tensor:
        """Cholesky factor of n damping I + K."""
        K = self._sum(G @ G.T)
        K.diagonal().add_(self._norm() * damping)
        return torch.linalg.cholesky(K)

    def _dense(self, G: Tensor, damping: float) -> Tensor:
        F = G.T @ G / self._norm() if len(G) else torch.zeros(2 * G.shape[1:]).to(G)
        F.diagonal().add_(damping)
        return F

    def _solve(self, G: Tensor, v: Tensor, damping: float) -> Tensor:
        if not len(G):
            return v / damping
        if self._method == "direct":
            return torch.cholesky_solve(v.T, torch.linalg.cholesky(self._dense(G, damping))).T
        c = torch.cholesky_solve(self._sum(G @ v.T), self._system(G, damping))
        return (v - c.T @ G) / damping

    def _times(self, G: Tensor, x: Tensor, damping: float) -> Tensor:
        if not len(G):
            return x * damping
        return damping * x + self._sum(x @ G.T) @ G / self._norm()

    def _inverse_diagonal(self, G: Tensor) -> Tensor:
        if not len(G):
            return torch.full_like(G.sum(0), 1 / self.damping)
        if self._method == "direct":
            L = torch.linalg.cholesky(self._dense(G, self.damping))
            return torch.cholesky_inverse(L).diagonal().clone()
        W = torch.linalg.solve_triangular(self._system(G, self.damping), G, upper=False)
        return (1 - W.square().sum(0)) / self.damping

    def _log_determinant(self, G: Tensor) -> float:
        d = int(self._sum(torch.tensor(G.shape[1])))
        if not len(G):
            return d * math.log(self.damping)
        if self._method == "direct":
            return float(torch.logdet(self._dense(G, self.damping)))
        factor = 2 * self._system(G, self.damping).diagonal().log().sum()
        c, n = len(G), self._norm()
        return float(factor) + (d - c) * math.log(self.damping) - c * math.log(n)

    def _vectors(self, name: str, v: Tensor) -> Tensor:
        if v.ndim not in (1, 2) or v.shape[-1] != self.d:
            raise ValueError(
                f"{type(self).__name__}: {name} has shape {tuple(v.shape)}, "
                f"expected ({self.d},) or (k, {self.d})"
            )
        return v.double().reshape(-1, self.d)

    def _checked_damping(self, damping: float) -> float:
        if not (math.isfinite(damping) and damping > 0):
            raise ValueError(
                f"{type(self).__name__}: damping must be positive and finite, got {damping}"
            )
        return float(damping)


class SlidingWindowFisher(_Fisher):
    """The newest of the gradients pushed, at most m; row 0 is the oldest.

    Gradients are rounded to ``dtype`` when stored. n is m under normalize="capacity", and the
    number of rows held under "filled". With a process group each rank holds its columns.
    """

    def __init__(
        self,
        d: int,
        m: int,
        damping: float,
        *,
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
        normalize: str = "capacity",
        block_size: int | None = None,
        process_group: Any = None,
        method: str = "woodbury",
    ) -> None:
        super().__init__(d, damping, block_size, method, process_group)
        if m < 1:
            raise ValueError(f"SlidingWindowFisher: m must be at least 1, got {m}")
        if normalize not in ("capacity", "filled"):
            raise ValueError(
                "SlidingWindowFisher: normalize must be 'capacity' or 'filled', "
                f"got {normalize!r}"
            )
        self.capacity = m
        self.normalize = normalize
        self.window = torch.empty(0, d, dtype=dtype, device=device)

    def __len__(self) -> int:
        return len(self.window)

    def push(self, grad: Tensor) -> None:
        row = self._row(grad)
        kept = self.window[max(0, len(self) + 1 - self.capacity) :]
        self.window = torch.cat([kept, row[None]])

    def push_ihvp(self, grad: Tensor, v: Tensor | None = None) -> Tensor:
        """Push and return F^-1 v; without v that of the gradient as it was stored.

        For that one F^-1 g_j = n G' (n damping I + K)^-1 e_j, whose terms do not cancel.
        """
        if v is not None:
            self._vectors("v", v)
        self.push(grad)
        if v is not None:
            return self.ihvp(v)
        newest = torch.zeros(len(self), 1, dtype=torch.float64, device=self.window.device)
        newest[-1] = self._norm()
        return torch.cat(
            [
                (torch.cholesky_solve(newest, self._system(G, self.damping)).T @ G)[0]
                for _, G in self._blocks()
            ]
        )

    def replace(self, i: int, grad: Tensor) -> None:
        row, i = self._row(grad), self._index("replace", i)
        self.window = torch.cat([self.window[:i], row[None], self.window[i + 1 :]])

    def remove(self, i: int) -> None:
        """Drop a row; n stays under normalize="capacity"."""
        i = self._index("remove", i)
        self.window = torch.cat([self.window[:i], self.window[i + 1 :]])

    def state_dict(self) -> dict[str, Any]:
        return {"window": self.window.clone(), "damping": self.damping}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        window = state["window"]
        if window.shape[1:] != (self.d,) or len(window) > self.capacity:
            raise ValueError(
                f"SlidingWindowFisher: window has shape {tuple(window.shape)}, expected at "
                f"most {self.capacity} rows of {self.d}"
            )
        self.set_damping(state["damping"])
        self.window = window.to(self.window).clone()

    def _rows(self) -> Tensor:
        return self.window.double()

    def _norm(self) -> int:
        return self.capacity if self.normalize == "capacity" else max(1, len(self))

    def _row(self, grad: Tensor) -> Tensor:
        if grad.shape != (self.d,):
            raise ValueError(
                f"SlidingWindowFisher: grad has shape {tuple(grad.shape)}, expected ({self.d},)"
            )
        row = grad.detach().to(self.window)
        bad = self._sum((~torch.isfinite(row)).sum())
        if bad:
            raise ValueError(
                "SlidingWindowFisher: grad must be finite in the window's dtype, got "
                f"{int(bad)} entries that are not"
            )
        return row

    def _index(self, function: str, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"{function}: row must be in [0, {len(self)}), got {i}")
        return i


class StaticFisher(_Fisher):
    """A fixed set of gradients, (c, d); n = c."""

    def __init__(
        self,
        G: Tensor,
        damping: float,
        *,
        block_size: int | None = None,
        process_group: Any = None,
        method: str = "woodbury",
    ) -> None:
        super().__init__(G.shape[1], damping, block_size, method, process_group)
        self.G = G.detach().double()
        self._factors: dict[tuple[int, int, float], Tensor] = {}

    @classmethod
    def from_gradients(cls, G: Tensor, damping: float, **options: Any) -> StaticFisher:
        return cls(G, damping, **options)

    def __len__(self) -> int:
        return len(self.G)

    def _rows(self) -> Tensor:
        return self.G

    def _system(self, G: Tensor, damping: float) -> Tensor:
        key = int(G.storage_offset()), int(G.shape[1]), damping
        if key not in self._factors:
            self._factors[key] = super()._system(G, damping)
        return self._factors[key]

    def _norm(self) -> int:
        return max(1, len(self.G))


class StaticRecursion:
    """The paper's section 3.1: one rank-1 update of F^-1 a gradient, in the dtype of G.

    v_i = F_{i-1}^-1 g_i = g_i / damping - sum_{k<i} v_k (v_k . g_i) / (n + g_k . v_k): two
    products of a matrix and a vector for each row.
    """

    def __init__(self, G: Tensor, damping: float) -> None:
        self.n, self.damping = len(G), damping
        self.V = torch.empty_like(G)
        self.denominator = torch.empty_like(G[:, 0])
        for i, g in enumerate(G):
            shares = (self.V[:i] @ g) / self.denominator[:i]
            self.V[i] = g / damping - shares @ self.V[:i]
            self.denominator[i] = self.n + self.V[i] @ g

    def ihvp(self, v: Tensor) -> Tensor:
        return v / self.damping - ((self.V @ v) / self.denominator) @ self.V

    def diag_inverse(self) -> Tensor:
        diagonal = torch.full_like(self.V[0], 1 / self.damping)
        for v, denominator in zip(self.V, self.denominator, strict=True):
            diagonal -= v * v / denominator
        return diagonal

    def element(self, i: int, j: int) -> float:
        off = (self.V[:, i] * self.V[:, j] / self.denominator).sum()
        return (1 / self.damping if i == j else 0.0) - float(off)


class DynamicRecursion:
    """The paper's section 3.2: coefficients of all v_i in terms of the rows of G.

    With D_ij = g_i' F_{i-1}^-1 g_j, i <= j, and v_i = sum_j B_ij g_j:

        D_ij = K_ij / damping - sum_{k<i} D_ki D_kj / (n + D_kk)
        B_i  = e_i / damping - sum_{k<i} D_ki / (n + D_kk) B_k
    """

    def __init__(self, G: Tensor, damping: float) -> None:
        self.n, self.damping, self.G = len(G), damping, G.clone()
        self.K = G @ G.T
        self.oldest = 0
        self._coefficients()

    def push(self, g: Tensor) -> None:
        """g in the place of the oldest gradient: O(d m + m^3)."""
        i = self.oldest
        self.G[i] = g
        self.K[i] = self.K[:, i] = self.G @ g
        self.oldest = (i + 1) % self.n
        self._coefficients()

    def _coefficients(self) -> None:
        # In the order of the slots, as F is a sum, whatever their age.
        D = self.K / self.damping
        B = torch.eye(self.n, dtype=D.dtype, device=D.device) / self.damping
        for k in range(self.n - 1):
            share = D[k, k + 1 :] / (self.n + D[k, k])
            D[k + 1 :, k + 1 :] -= share[:, None] * D[k, k + 1 :]
            B[k + 1 :] -= share[:, None] * B[k]
        self.D, self.B = D, B

    def ihvp(self, v: Tensor) -> Tensor:
        p = self.G @ v / self.damping
        for k in range(self.n - 1):  # p_i = g_i' F_{i-1}^-1 v
            p[k + 1 :] -= self.D[k, k + 1 :] * (p[k] / (self.n + self.D[k, k]))
        shares = p / (self.n + self.D.diagonal())
        return v / self.damping - (shares @ self.B) @ self.G
