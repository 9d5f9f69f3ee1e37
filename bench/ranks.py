"""Time a push of M-FAC whose columns two processes share: `python bench/ranks.py`.

Two processes with half of the columns each, joined by gloo, against one with all of them; one
thread a process. Rounds alternate; the ratio is the median of theirs. The second process waits
for the first at the sum over the ranks, so this is the time of both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist

from curvkern.fisher import SlidingWindowFisher

RANKS = 2
DAMPING = 1e-3


def window(m: int, d: int, group: Any = None) -> SlidingWindowFisher:
    """A full one."""
    fisher = SlidingWindowFisher(d, m, DAMPING, process_group=group)
    for _ in range(m):
        fisher.push(torch.randn(d))
    return fisher


def seconds(fisher: SlidingWindowFisher, gradient: torch.Tensor) -> float:
    """Of one push with the product of the newest."""
    start = time.perf_counter()
    fisher.push_ihvp(gradient)
    return time.perf_counter() - start


def rank(index: int, folder: str, m: int, d: int, rounds: int) -> None:
    """One of the processes; the first has the whole window, too, and prints."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=index, world_size=RANKS
    )
    part = window(m, d // RANKS, dist.group.WORLD)
    whole = window(m, d) if index == 0 else None
    gradient = torch.randn(d)
    shared, alone = [], []
    for _ in range(rounds):
        dist.barrier()
        shared.append(seconds(part, gradient[: d // RANKS]))
        dist.barrier()
        if whole is not None:
            alone.append(seconds(whole, gradient))
    if alone:
        ratio = statistics.median(a / b for a, b in zip(shared, alone, strict=True))
        print(
            f"m={m} d={d}: {1e3 * statistics.median(shared):.2f} ms on {RANKS} ranks, "
            f"{1e3 * statistics.median(alone):.2f} ms in one process, {ratio:.2f}x"
        )
    dist.destroy_process_group()


def main() -> None:
    """Spawn the ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--m", type=int, default=128)
    parser.add_argument("--d", type=int, default=10**6)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            rank, (folder, options.m, options.d, options.rounds), nprocs=RANKS
        )


if __name__ == "__main__":
    main()
