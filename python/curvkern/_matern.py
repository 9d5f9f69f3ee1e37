"""The Matern correlation: its arguments, and what is made of one compiled operation.

The operation takes the order and the distance in length scales. Where that is 0 or infinite the
chain rule for the length scale is 0 times infinity, and is replaced by its limit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _autograd, _runtime
from ._arguments import HALVES, _as_tensor, checked, memory_error
from ._masks import all_of

# Its square is infinite.
BEYOND = {torch.float64: 1e160, torch.float32: 1e30}


def matern(r: Any, nu: Any, lengthscale: Any = 1.0) -> Any:
    r"""General-order Matern correlation.

    .. math::
        M_\nu(r) = \frac{2^{1-\nu}}{\Gamma(\nu)} z^\nu K_\nu(z),
        \qquad z = \sqrt{2\nu}\, r / \ell

    nu = 1/2 is exp(-r/l), nu -> inf the Gaussian exp(-r^2 / 2 l^2).

    Parameters
    ----------
    r : Tensor, ndarray or float
        Distances, >= 0.
    nu : Tensor, ndarray or float
        Smoothness, > 0; inf is allowed.
    lengthscale : Tensor, ndarray or float
        Length scale, > 0.

    Returns
    -------
    Tensor or ndarray
        Of the broadcast shape and the promoted dtype; NumPy arrays and plain numbers give NumPy
        results.

    Raises
    ------
    TypeError
        A complex, boolean, sparse, nested or masked argument, or no number at all.
    ValueError
        Shapes that do not broadcast; tensors on two devices; a number beyond float64.
    MemoryError
        A result that does not fit.

    Notes
    -----
    Native in float64 and float32; halves are computed in float32. Outside the domain the value
    is NaN, and so are all derivatives. All three arguments have gradients, twice.

    Relative errors, in eps of max(1, abs(log M)), were at most 9.8 for the value among 68 000
    points against Arb, most of them where the formulas are worst, and 4.3 among 1200 spread
    over all orders; 11.1 for the derivative in r, and 31 in nu, relative to the larger of it
    and M: it loses digits where nu > 1 and r / l is tiny. Second derivatives in r were right to
    11.7 eps of 2 nu M, mixed ones to 51 of dM/dr, those in nu to 156 of the larger of M and
    dM/dnu / nu, or of themselves where they are larger. The largest errors stand next to
    nu = 1/2 and 3/2 where z is near 1.2; docs/accuracy.md has them by range.

    At r = 0, where r / l underflows too, the derivatives are the limits from the right:

    ====================  ======  ===================  =================
    nu                    in r    in r twice           in r and nu
    ====================  ======  ===================  =================
    below 1/2             -inf    inf                  inf
    1/2                   -1/l    1/l^2                inf
    above 1/2, up to 1    0       -inf                 0
    above 1               0       -nu / (nu - 1) l^2   0
    ====================  ======  ===================  =================

    That in r and l is the one of the slope in r; those in nu and l alone are 0. Forward mode
    multiplies slopes by tangents, and minus infinity by the zero of one that does not move r is
    NaN: at r = 0 with nu < 1/2 the tangent of l gives NaN where reverse mode gives 0.

    A positive nu or length scale that is too small for the result's dtype counts as the least
    number above 0.

    Examples
    --------
    >>> import torch
    >>> from curvkern.special import matern
    >>> r = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    >>> print([round(m, 6) for m in matern(r, 0.7).tolist()])
    [1.0, 0.672018, 0.406182]
    """
    arguments = {"r": r, "nu": nu, "lengthscale": lengthscale}
    if not any(isinstance(a, Tensor) for a in arguments.values()):
        # Beside an array a number has no dtype, or the default length scale would be float64.
        numbers = {name for name, a in arguments.items() if type(a) in (int, float)} - {"r"}
        arrays = [
            a if name in numbers else _as_tensor("matern", name, a)
            for name, a in arguments.items()
        ]
        return matern(*arrays).numpy()[()]
    arguments = {name: checked("matern", name, a) for name, a in arguments.items()}
    device, shape = _common(arguments)
    dtype = _promoted(*arguments.values())
    work = torch.float32 if dtype in HALVES else dtype
    try:
        r = torch.as_tensor(arguments.pop("r"), dtype=work, device=device)
        nu, length = (_positive(a, work, device) for a in arguments.values())
        return _correlation(shape, r, nu, length).to(dtype)
    except RuntimeError as error:
        raise memory_error("matern", shape, error) from None


def _positive(value: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The value in the dtype; what is positive but too small for it as the least above 0."""
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    if not isinstance(value, Tensor):
        value = least if 0 < value < least else value
    elif value.dtype is torch.float64 and dtype is not torch.float64:
        value = torch.where((value > 0) & (value < least), least, value)
    return torch.as_tensor(value, dtype=dtype, device=device)


def _promoted(*arguments: Any) -> torch.dtype:
    """torch's promotion of several arguments, integers to the default floating dtype."""
    probes = [
        a.new_empty((0,) * min(a.dim(), 1)) if isinstance(a, Tensor) else a for a in arguments
    ]
    total = probes[0] + probes[1] + probes[2]
    return total.dtype if total.is_floating_point() else torch.get_default_dtype()


def _common(arguments: dict[str, Any]) -> tuple[torch.device, torch.Size]:
    """The device, where numbers and 0-d CPU tensors follow the others, and the shape."""
    tensors = {name: a for name, a in arguments.items() if isinstance(a, Tensor)}
    movable = {name for name, t in tensors.items() if t.dim() == 0 and t.device.type == "cpu"}
    leader = next((name for name in tensors if name not in movable), next(iter(tensors)))
    device = tensors[leader].device
    for name in tensors.keys() - movable:
        other = tensors[name].device
        if other != device:
            raise ValueError(f"matern: {leader} is on {device} but {name} is on {other}")
    try:
        shape = torch.broadcast_shapes(*(t.shape for t in tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ValueError(f"matern: shapes do not broadcast: {shapes}") from None
    return device, shape


def _correlation(shape: torch.Size, r: Tensor, nu: Tensor, length: Tensor) -> Tensor:
    _runtime.spare_forked_child()
    length = length * torch.where(length > 0, 1.0, torch.nan)
    if not _autograd.derivative_wanted(length):
        return _operation(nu, r / length, shape)
    rho = r / length
    ratio = rho.detach()
    if all_of((ratio > 0) & (ratio < torch.inf)):
        return _operation(nu, rho, shape)
    fixed = ((ratio == 0) | (ratio == torch.inf)) & (nu > 0)
    moving = torch.where(fixed, 1.0, r) / torch.where(fixed, 1.0, length)
    rho = torch.where(fixed, r / length.detach(), moving)
    result = _operation(nu, rho, shape)
    if not _autograd.derivative_wanted(r):
        return result
    near = torch.where(ratio == 0, r, 0.0)
    return result + torch.where(ratio == 0, _mixed_at_origin(near, nu, length), 0.0)


def _operation(nu: Tensor, rho: Tensor, shape: torch.Size) -> Tensor:
    nu, rho = nu.expand(shape), rho.expand(shape)
    if _runtime.backend() == "reference":
        from .reference import matern as twin

        return twin.matern(nu, rho)
    return _autograd.elementwise("matern", nu, rho)


def _mixed_at_origin(r: Tensor, nu: Tensor, length: Tensor) -> Tensor:
    """Zero at r = 0, like its first derivatives; in r and length M has the mixed one

    1/l^2 where nu = 1/2, infinite where nu < 1/2, else 0. Infinity comes from two factors, as
    it would make first derivatives of zero times infinity.
    """
    length = length.clamp_max(BEYOND[r.dtype])
    factor = torch.where(nu == 0.5, 1 / length, 0.0).detach()
    factor = torch.where(nu < 0.5, BEYOND[r.dtype], factor)
    return (factor * r) * (factor * (length - length.detach()))
