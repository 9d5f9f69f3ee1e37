"""Times the contestants of a case in interleaved rounds within one process.

In a round every contestant has its turn, starting with another one each time, so that a slow
spell of the machine hits all of them; ratios are taken within a round, then their median. A
turn is one call, or, where a case has ``repeats``, one and then so many more: the median of
these counts, and the first call, for which the others have emptied the caches, is told too.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from .case import OURS, Bar, Case, Contestants
from .machine import floor_ns, peak_MiB, threads


@dataclass(frozen=True)
class Settings:
    """How long to measure. A case ends after ``budget`` seconds and at least ``min_rounds``.

    A contestant that takes longer than ``slow`` seconds plays in the first round only.
    """

    elements: int | None = None  # None: each case's own size
    budget: float = 6.0
    min_rounds: int = 7
    max_rounds: int = 60
    slow: float = 2.0


QUICK = Settings(elements=2**16, budget=0.5, min_rounds=3, max_rounds=25)
QUICK_SECONDS = 40.0  # for the rounds of all cases together


def measure(case: Case, settings: Settings, limits: dict[str, float]) -> dict:
    """Measure one case; the result is plain data, ready for JSON."""
    elements = settings.elements or case.elements
    with np.errstate(all="ignore"):
        with threads(1):
            contestants, finite, errors, warm = _warm_up(case.setup(elements), settings.slow)
        if OURS not in contestants:
            raise RuntimeError(f"bench: {case.name}: curvkern failed: {errors.get(OURS)}")
        with threads(1):  # once more, for the libraries that the first calls have loaded
            times, first = _interleave(contestants, warm, settings, case.repeats)
            peaks = {n: peak_MiB(call) for n, call in contestants.items() if case.memory}
    per_element = {
        name: {rnd: seconds / elements * 1e9 for rnd, seconds in rounds.items()}
        for name, rounds in times.items()
    }
    ours = per_element[OURS]
    ratios, first_ratios = _ratios(times), _ratios(first)
    median_ns = statistics.median(ours.values())
    least, bound = floor_ns(case.bytes, case.flops, case.dtype, limits)
    return {
        "family": case.family,
        "op": case.op,
        "region": case.region,
        "mode": case.mode,
        "dtype": case.dtype,
        "where": case.where,
        "elements": elements,
        "yardstick": case.yardstick,
        "contestants": {
            name: {
                "median_ns": statistics.median(rounds.values()),
                "min_ns": min(rounds.values()),
                "first_ns": statistics.median(first[name].values()) / elements * 1e9
                if case.repeats
                else None,
                "rounds": len(rounds),
                "finite": finite[name],
                "peak_MiB": peaks.get(name),
                "iterations": getattr(contestants[name], "iterations", None),
            }
            for name, rounds in per_element.items()
        },
        "errors": errors,
        "repeats": case.repeats,
        "ratio_to": ratios,  # our time / theirs
        "first_ratio_to": first_ratios if case.repeats else None,  # in first calls of turns
        "all_threads": _all_threads(contestants, elements, median_ns),
        "limit": {"ns": least, "bound": bound, "share": least / median_ns},
        "bars": [_judged(bar, ratios) for bar in case.bars if bar.quickest(ratios)],
        "note": case.note,
    }


def _ratios(times: dict[str, dict[int, float]]) -> dict[str, float]:
    """Our time over that of each of the others: of a round, then the median."""
    ours = times[OURS]
    return {
        name: statistics.median(ours[r] / theirs[r] for r in theirs if r in ours)
        for name, theirs in times.items()
        if name != OURS
    }


def _judged(bar: Bar, ratios: dict[str, float]) -> dict:
    """A bar of which a rival was measured, with the ratio to the quickest of them."""
    rival = bar.quickest(ratios)
    assert rival is not None
    ratio = ratios[rival]
    return {
        "rival": rival,
        "slower": bar.slower,
        "faster": bar.faster,
        "mean": bar.mean,
        "ratio": ratio,
        "met": bar.met(ratio),
        "text": bar.describe(ratio, rival),
    }


def _warm_up(contestants: Contestants, slow: float) -> tuple[dict, dict, dict, dict]:
    """Call each: drop those that fail, note the share of finite results and the time."""
    alive, finite, errors, seconds = {}, {}, {}, {}
    for name, call in contestants.items():
        try:
            start = time.perf_counter()
            result = call()
            seconds[name] = time.perf_counter() - start
            if seconds[name] < 10 * slow:  # else a second call would tell little more
                start = time.perf_counter()
                call()
                seconds[name] = time.perf_counter() - start
        except Exception as error:  # a rival's failure is a result, not the end of the run
            errors[name] = f"{type(error).__name__}: {error}"
            continue
        alive[name], finite[name] = call, _finite_share(result)
    return alive, finite, errors, seconds


def _interleave(
    contestants: Contestants, warm: dict[str, float], settings: Settings, repeats: int
) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    """Seconds by contestant and round, and those of the first call of each turn.

    A contestant that takes long sits out the later rounds.
    """
    names = list(contestants)
    times: dict[str, dict[int, float]] = {name: {} for name in names}
    first_times: dict[str, dict[int, float]] = {name: {} for name in names}
    share = settings.budget / settings.min_rounds / len(names) / (1 + repeats)
    quick_names = [name for name in names if warm[name] <= share or name == OURS]
    not_slow = [name for name in names if warm[name] <= settings.slow or name == OURS]
    start = time.perf_counter()
    with _no_garbage_collection():
        for rnd in range(settings.max_rounds):
            if rnd >= settings.min_rounds and time.perf_counter() - start > settings.budget:
                break
            playing = not_slow if rnd < settings.min_rounds else quick_names
            playing = playing if rnd else names
            first = rnd % len(playing)
            for name in (*playing[first:], *playing[:first]):
                turn = [_timed(contestants[name]) for _ in range(1 + repeats)]
                first_times[name][rnd] = turn[0]
                times[name][rnd] = statistics.median(turn[1:] or turn)
    return times, first_times


def _timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def _all_threads(contestants: Contestants, elements: int, one_thread_ns: float) -> dict | None:
    """Our own time on every thread torch would use, where there is more than one."""
    count = torch.get_num_threads()
    if count == 1:
        return None
    call = contestants[OURS]
    call()
    times: list[float] = []
    with _no_garbage_collection():
        # a short one more often: cores that slept take some milliseconds to be quick
        while len(times) < 7 or sum(times) < 0.05:
            times.append(_timed(call))
    ns = statistics.median(times) / elements * 1e9
    return {"threads": count, "median_ns": ns, "speedup": one_thread_ns / ns}


def _finite_share(result: object) -> float:
    """The share of finite numbers in a tensor, an array or a sequence of them."""
    if isinstance(result, (tuple, list)):
        return min(map(_finite_share, result))
    if isinstance(result, torch.Tensor):
        result = result.detach().numpy()
    return float(np.isfinite(np.asarray(result)).mean())


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
