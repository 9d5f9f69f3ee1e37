"""The log-Bessel functions. Conventions and source: :mod:`curvkern.special`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from . import _arguments, _autograd, _runtime

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    #: What the functions take, and what they give.
    Real: TypeAlias = Tensor | npt.NDArray[Any] | np.generic | float
    Result: TypeAlias = Any


def _evaluate(function: str, v: Real, x: Real) -> Result:
    def compute(v: Tensor, x: Tensor) -> Tensor:
        if _runtime.backend() == "reference":
            from .reference import bessel

            result: Tensor = getattr(bessel, function)(v, x)
            return result
        return _autograd.elementwise(function, v, x)

    return _arguments.elementwise(function, compute, v, x)


def log_iv(v: Real, x: Real) -> Result:
    r"""Logarithm of the modified Bessel function of the first kind, :math:`\log I_v(x)`.

    .. math:: I_v(x) = \sum_{k \ge 0} \frac{(x/2)^{2k+v}}{k!\,\Gamma(k+v+1)}

    Parameters
    ----------
    v : Tensor, array or number
        Order, ``v >= 0``.
    x : Tensor, array or number
        Argument, ``x >= 0``.

    Returns
    -------
    Tensor or array
        Of the broadcast shape and the promoted dtype. At ``x = 0`` it is 0 where ``v = 0`` and
        ``-inf`` where not; ``inf`` at ``x = inf``; ``-inf`` at ``v = inf``; NaN where both are
        infinite.

    Raises
    ------
    TypeError, ValueError, MemoryError
        See :mod:`curvkern.special`, which has the derivatives and the accuracy too.

    Examples
    --------
    >>> import torch
    >>> from curvkern.special import log_iv
    >>> x = torch.tensor([1.0, 10.0, 1000.0], dtype=torch.float64)
    >>> log_iv(2.5, x)
    tensor([ -2.8630,   7.6151, 995.6242], dtype=torch.float64)

    The order is differentiable too:

    >>> v = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    >>> log_iv(v, x[0]).backward()
    >>> v.grad
    tensor(-1.8163, dtype=torch.float64)

    The function itself is below the smallest float64 here:

    >>> float(log_iv(1000.0, 1.0))
    -6605.2751092978
    """
    return _evaluate("log_iv", v, x)


def log_kv(v: Real, x: Real) -> Result:
    r"""Logarithm of the modified Bessel function of the second kind, :math:`\log K_v(x)`.

    .. math:: K_v(x) = \int_0^\infty e^{-x \cosh t} \cosh(vt)\,dt

    Parameters
    ----------
    v : Tensor, array or number
        Order, ``v >= 0``.
    x : Tensor, array or number
        Argument, ``x >= 0``.

    Returns
    -------
    Tensor or array
        Of the broadcast shape and the promoted dtype. ``inf`` at ``x = 0`` and at ``v = inf``,
        ``-inf`` at ``x = inf``, NaN where both are infinite.

    Raises
    ------
    TypeError, ValueError, MemoryError
        See :mod:`curvkern.special`, which has the derivatives and the accuracy too.

    Examples
    --------
    >>> import torch
    >>> from curvkern.special import log_kv
    >>> x = torch.tensor([1.0, 10.0, 1000.0], dtype=torch.float64)
    >>> log_kv(2.5, x)
    tensor([    1.1717,   -10.6403, -1003.2251], dtype=torch.float64)
    >>> float(log_kv(1000.0, 1.0))
    6597.6742063383
    """
    return _evaluate("log_kv", v, x)


def log_ive(v: Real, x: Real) -> Result:
    r"""Exponentially scaled :math:`\log I_v(x) - x`, without cancellation at large ``x``.

    Tends to :math:`-\tfrac12 \log(2 \pi x)` as ``x`` grows.

    Parameters
    ----------
    v : Tensor, array or number
        Order, ``v >= 0``.
    x : Tensor, array or number
        Argument, ``x >= 0``.

    Returns
    -------
    Tensor or array
        Of the broadcast shape and the promoted dtype. At ``x = 0`` as :func:`log_iv`; ``-inf``
        at ``x = inf`` and at ``v = inf``.

    Raises
    ------
    TypeError, ValueError, MemoryError
        See :mod:`curvkern.special`, which has the derivatives and the accuracy too.

    Examples
    --------
    >>> import torch
    >>> from curvkern.special import log_ive
    >>> log_ive(2.5, torch.tensor([1.0, 10.0, 1000.0], dtype=torch.float64))
    tensor([-3.8630, -2.3849, -4.3758], dtype=torch.float64)
    """
    return _evaluate("log_ive", v, x)


def log_kve(v: Real, x: Real) -> Result:
    r"""Exponentially scaled :math:`\log K_v(x) + x`, without cancellation at large ``x``.

    Tends to :math:`\tfrac12 \log(\pi / 2x)` as ``x`` grows.

    Parameters
    ----------
    v : Tensor, array or number
        Order, ``v >= 0``.
    x : Tensor, array or number
        Argument, ``x >= 0``.

    Returns
    -------
    Tensor or array
        Of the broadcast shape and the promoted dtype. ``inf`` at ``x = 0`` and at ``v = inf``,
        ``-inf`` at ``x = inf``.

    Raises
    ------
    TypeError, ValueError, MemoryError
        See :mod:`curvkern.special`, which has the derivatives and the accuracy too.

    Examples
    --------
    >>> import torch
    >>> from curvkern.special import log_kve
    >>> log_kve(2.5, torch.tensor([1.0, 10.0, 1000.0], dtype=torch.float64))
    tensor([ 2.1717, -0.6403, -3.2251], dtype=torch.float64)
    """
    return _evaluate("log_kve", v, x)


def iv_ratio(v: Real, x: Real) -> Result:
    r"""Ratio of neighbouring orders, :math:`I_{v+1}(x) / I_v(x)`.

    With ``v = d/2 - 1`` this is the mean resultant length of a von Mises-Fisher distribution
    on the unit sphere of :math:`\mathbb{R}^d` with concentration ``x``.

    Parameters
    ----------
    v : Tensor, array or number
        Order, ``v >= 0``.
    x : Tensor, array or number
        Argument, ``x >= 0``.

    Returns
    -------
    Tensor or array
        Of the broadcast shape and the promoted dtype, between 0 (at ``x = 0``) and 1 (at
        ``x = inf``).

    Raises
    ------
    TypeError, ValueError, MemoryError
        See :mod:`curvkern.special`, which has the derivatives and the accuracy too.

    Examples
    --------
    >>> import torch
    >>> from curvkern.special import iv_ratio
    >>> iv_ratio(2.5, torch.tensor([1.0, 10.0, 1000.0], dtype=torch.float64))
    tensor([0.1406, 0.7329, 0.9970], dtype=torch.float64)
    """
    return _evaluate("iv_ratio", v, x)


def kv_ratio(v: Real, x: Real) -> Result:
    r"""Ratio of neighbouring orders, :math:`K_{v+1}(x) / K_v(x)`.

    Parameters
    ----------
    v : Tensor, array or number
        Order, ``v >= 0``.
    x : Tensor, array or number
        Argument, ``x >= 0``.

    Returns
    -------
    Tensor or array
        Of the broadcast shape and the promoted dtype, between ``inf`` (at ``x = 0``) and 1 (at
        ``x = inf``).

    Raises
    ------
    TypeError, ValueError, MemoryError
        See :mod:`curvkern.special`, which has the derivatives and the accuracy too.

    Examples
    --------
    >>> import torch
    >>> from curvkern.special import kv_ratio
    >>> kv_ratio(2.5, torch.tensor([1.0, 10.0, 1000.0], dtype=torch.float64))
    tensor([5.2857, 1.3271, 1.0030], dtype=torch.float64)
    """
    return _evaluate("kv_ratio", v, x)


def log_hyp0f1(v: Real, x: Real) -> Result:
    r"""Logarithm of a confluent hypergeometric function, :math:`\log {}_0F_1(; v+1; x^2/4)`.

    .. math:: {}_0F_1(; v+1; x^2/4) = \Gamma(v+1) \left(\frac{2}{x}\right)^v I_v(x)

    It is :math:`\log I_v(x)` without its singular part, and keeps its relative accuracy as
    ``x`` tends to 0, where it behaves as :math:`x^2 / (4(v+1))`.

    Parameters
    ----------
    v : Tensor, array or number
        Order, ``v >= 0``.
    x : Tensor, array or number
        Argument, ``x >= 0``.

    Returns
    -------
    Tensor or array
        Of the broadcast shape and the promoted dtype. 0 at ``x = 0``, ``inf`` at ``x = inf``.

    Raises
    ------
    TypeError, ValueError, MemoryError
        See :mod:`curvkern.special`, which has the derivatives and the accuracy too.

    Examples
    --------
    >>> import torch
    >>> from curvkern.special import log_hyp0f1
    >>> log_hyp0f1(2.5, torch.tensor([1.0, 10.0, 1000.0], dtype=torch.float64))
    tensor([7.0871e-02, 4.7924e+00, 9.8129e+02], dtype=torch.float64)
    >>> float(log_hyp0f1(2.5, 1e-8))
    7.1428571428571e-18
    """
    return _evaluate("log_hyp0f1", v, x)
