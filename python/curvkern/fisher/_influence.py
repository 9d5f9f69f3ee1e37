"""What a training example does to the loss of a test example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._arguments import check_layout
from ._queries import CHUNK, size


def influence(test_grads: Tensor, train_grads: Tensor, fisher: Any) -> Tensor:
    r"""First-order change of test losses with the weights of training examples.

    .. math:: I_{ij} = -\nabla \ell(z_i^{test})^\top F^{-1} \nabla \ell(z_j^{train})

    is the derivative of the loss of test example i in the weight :math:`\epsilon` of training
    example j in :math:`\frac1n \sum_k \ell_k + \epsilon \ell_j`: negative where the example
    helps. Its weight is 1/n, so that leaving it out changes the loss by about -I / n. An
    example's influence on itself, -g' F^-1 g, is the more negative the less the others say of
    it: mislabelled examples come first.

    Parameters
    ----------
    test_grads
        Gradients of the test losses, (n_test, d), floating.
    train_grads
        Gradients of the training losses, (n_train, d), floating.
    fisher
        An object with ``ihvp`` and its dimension ``d``: the inverse of the Hessian's stand-in.

    Returns
    -------
    Tensor
        (n_test, n_train), in the wider of the two dtypes. The smaller set is multiplied by
        :math:`F^{-1}`, in blocks; sums are float64.

    Raises
    ------
    TypeError
        The gradients are no floating tensors, or ``fisher`` has no ``ihvp``.
    ValueError
        A shape is not (n, d), or the gradients are on two devices.

    References
    ----------
    .. [1] P. W. Koh, P. Liang, "Understanding Black-box Predictions via Influence Functions",
       ICML 2017, equation 2.

    Examples
    --------
    >>> import torch
    >>> from curvkern.fisher import influence
    >>> from curvkern.fisher import StaticFisher
    >>> G = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> influence(G[:1], G, StaticFisher.from_gradients(G, 0.1))
    tensor([[-2.4665,  0.5362, -0.6971]])
    """
    d = size("influence", fisher, diagonal=False)
    for name, grads in (("test_grads", test_grads), ("train_grads", train_grads)):
        if not isinstance(grads, Tensor):
            raise TypeError(f"influence: {name} must be a tensor, got {type(grads).__name__}")
        check_layout("influence", name, grads)
        if not grads.is_floating_point():
            raise TypeError(f"influence: {name} must be floating, got {grads.dtype}")
        if grads.ndim != 2 or grads.shape[1] != d:
            raise ValueError(
                f"influence: {name} has shape {tuple(grads.shape)}, expected (n, {d})"
            )
    if test_grads.device != train_grads.device:
        raise ValueError(
            f"influence: test_grads is on {test_grads.device} but train_grads on "
            f"{train_grads.device}"
        )
    dtype = torch.promote_types(test_grads.dtype, train_grads.dtype)
    test, train = test_grads.detach(), train_grads.detach()
    if len(train) < len(test):
        return _products(train, test, fisher).T.contiguous().to(dtype)
    return _products(test, train, fisher).to(dtype)


def _products(few: Tensor, many: Tensor, fisher: Any) -> Tensor:
    """-few F^-1 many', float64."""
    result = torch.empty(len(few), len(many), dtype=torch.float64, device=few.device)
    for start in range(0, len(few), CHUNK):
        solved = fisher.ihvp(few[start : start + CHUNK].double()).double()
        for at in range(0, len(many), CHUNK):
            part = many[at : at + CHUNK].double()
            result[start : start + CHUNK, at : at + CHUNK] = -(solved @ part.T)
    return result
