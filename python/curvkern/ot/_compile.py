"""Imported while torch.compile traces a solve; see :mod:`curvkern._compile`."""

import torch

from ._function import GATES

for _gate in GATES:
    torch.compiler.allow_in_graph(_gate)
