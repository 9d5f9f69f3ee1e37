"""What ``python -m curvkern`` tells: versions, instruction sets, threads, CUDA, backend."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from typing import Any

import torch

from . import __version__, _runtime


def collect() -> dict[str, Any]:
    """The facts, as plain data."""
    build = _runtime.build_info()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "curvkern": __version__,
        "python": platform.python_version(),
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda},
        "backend": _runtime.backend(),
        "isa": {
            "in_use": _runtime.isa(),
            "available": list(build["isas"]),
            "forced": bool(os.environ.get("CURVKERN_ISA")),
        },
        "threads": build["threads"],
        "cuda": {
            "built": find_spec("curvkern._cuda") is not None,
            "status": build["cuda"],
            "device": device,
        },
        "compiler": build["compiler"],
        "openmp": build["openmp"],
    }


def text(facts: dict[str, Any]) -> str:
    """The facts in lines for people."""
    torch_cuda = f"CUDA {facts['torch']['cuda']}" if facts["torch"]["cuda"] else "CPU only"
    isa, cuda = facts["isa"], facts["cuda"]
    lines = {
        "curvkern": facts["curvkern"],
        "python": facts["python"],
        "torch": f"{facts['torch']['version']} ({torch_cuda})",
        "backend": facts["backend"],
        "ISA": f"{isa['in_use']}{' (forced)' if isa['forced'] else ''}, "
        f"this CPU has {', '.join(isa['available'])}",
        "threads": facts["threads"],
        "CUDA": f"{cuda['status']}; {cuda['device'] or 'no device here'}",
        "compiler": facts["compiler"],
        "OpenMP": facts["openmp"] or "none shared with torch",
    }
    return "\n".join(f"{name:<9} {value}" for name, value in lines.items())
