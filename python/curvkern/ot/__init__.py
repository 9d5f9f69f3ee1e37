r"""Optimal transport: entropic at any regularisation, batched, differentiable twice; sparse.

.. math::
    \min_{P \ge 0} \; \langle P, C \rangle + \varepsilon\, KL(P \,|\, a \otimes b)
    + \rho_a KL(P 1 \,|\, a) + \rho_b KL(P^\top 1 \,|\, b),
    \qquad KL(P|Q) = \sum P \log\frac{P}{Q} - \sum P + \sum Q

where :math:`\rho = \infty`, the default, makes a marginal a constraint. All functions share
these conventions:

* Tensors are float64, float32, float16 or bfloat16 and may be mixed: the results have the
  widest of their dtypes. Potentials, marginals and sums are float64 throughout; halves are
  stored in float32. Integers, booleans and complex numbers raise ``TypeError``. NumPy arrays
  give NumPy results, and do not mix with tensors.
* A leading dimension is a batch, of which each problem has its own iterations, its own ``eps``
  and ``rho`` if these have shape (B,). What has no batch is shared.
* Weights may hold exact zeros, costs ``+inf``: the plan is 0 there. Balanced problems need
  equal masses, to 1e-8 of them in float64 and 1e-4 in float32.
* What is invalid raises before any work. What is hard is finite: ``converged`` says whether the
  error, computed anew in float64, has met ``tol``, and one :class:`curvkern.ConvergenceWarning`
  is given where it has not.

Notes
-----
**Derivatives** come from the optimality conditions, never from the iterations. That of the
value needs no further solve: f and g for the weights, P for the costs, KL(P | a b') for eps,
KL(P 1 | a) for rho. Potentials, plan, ``cost``, ``kl`` and ``apply`` take one linear solve with
the Hessian of the dual. All are themselves differentiable, in both modes, under ``torch.func``
and ``torch.compile``. In balanced problems derivatives in a and b have a constant free and are
centred, :math:`\sum a\, \partial_a / \sum a = \sum b\, \partial_b / \sum b`; the masses must
stay equal. They are finite at weights of zero. Between points all of them, of every order, and
``gap`` and ``apply``, take O(n + m) memory beside blocks of a fixed size; only ``plan`` holds
n m numbers.

**Conventions elsewhere.** With H(P) = - sum P log P, masses of 1, and two hard marginals:

========  ==========================  ====================  ==========================
library   objective                   eps, cost             potentials
========  ==========================  ====================  ==========================
here      <P, C> + eps KL(P | a b')   eps, as given         P = a b exp((f+g-C) / eps)
OTT       the same                    epsilon, as given     the same
GeomLoss  the same                    blur^p, abs(x-y)^p/p  the same
POT       <P, C> - reg H(P)           reg, as given         u = a exp(f / reg)
========  ==========================  ====================  ==========================

POT's ``sinkhorn2`` returns <P, C>, here ``cost``; its objective is ours minus
eps (H(a) + H(b)). OTT's ``ent_reg_cost`` and GeomLoss's undebiased loss are ``value``, and
GeomLoss's ``reach^p`` is ``rho``. POT's unbalanced ``reg_m`` is ``rho``.

**Devices.** On CUDA the sweeps, the sparse Newton steps of "auto" and "newton", the sums over
the plan and the sparsemax functions are kernels, which hold no costs between points. Newton
steps of problems of up to 65 536 costs are taken on the CPU, to which those are copied. With
``CURVKERN_BACKEND=reference``, and on CUDA where there are no kernels, the solvers are plain
PyTorch, which holds the costs between points, too, and takes dense Newton steps.

References
----------
.. [1] G. Peyre, M. Cuturi, "Computational Optimal Transport", Foundations and Trends in Machine
   Learning 11, 2019, arXiv:1803.00567.
"""

from __future__ import annotations

from . import compat
from ._barycenter import barycenter
from ._divergence import SamplesLoss, sinkhorn_divergence
from ._monge_gap import monge_gap
from ._result import OTResult
from ._sinkhorn import sinkhorn, sinkhorn_points
from ._soft_sort import soft_rank, soft_sort
from ._sparse_plans import SparsePlanResult, quadratic_ot, sparsity_constrained_ot
from ._sparsemax import sparsemax, topk_sparsemax

__all__ = [
    "OTResult",
    "SamplesLoss",
    "SparsePlanResult",
    "barycenter",
    "compat",
    "monge_gap",
    "quadratic_ot",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_points",
    "soft_rank",
    "soft_sort",
    "sparsemax",
    "sparsity_constrained_ot",
    "topk_sparsemax",
]
