"""Imported while torch.compile traces a gate: from then on it puts gates into its graphs.

torch.compile refuses an autograd.Function with a jvp where it looks inside one. It need not
look: what it traces in a second step are the operations that the gate runs. This is a module of
its own because the import of torch's compiler, which takes a second, should wait for its use.
"""

import torch

from . import _autograd
from .ot import _sparsemax
from .sparse import _depthwise, _gradients

for _gate in (
    *_autograd.GATES.values(),
    *_sparsemax.GATES,
    *_gradients.GATES,
    *_depthwise.GATES,
):
    torch.compiler.allow_in_graph(_gate)
