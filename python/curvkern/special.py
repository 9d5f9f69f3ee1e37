"""bring-up"""
from ._arguments import elementwise as _elementwise
from . import _autograd, _runtime


def _apply(function, v, x):
    def compute(v, x):
        if _runtime.backend() == "reference":
            from .reference import bessel
            return getattr(bessel, function)(v, x)
        return _autograd.elementwise(function, v, x)
    return _elementwise(function, compute, v, x)


def log_iv(v, x):
    return _apply("log_iv", v, x)
