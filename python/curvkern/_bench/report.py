"""From measurements to a table for people."""

from __future__ import annotations

import math

from .._console import BAD, Table
from .case import OURS, REFERENCE

HEADERS = (
    "op",
    "region",
    "mode",
    "dtype",
    "ns",
    "yardstick",
    "PyTorch",
    "peer",
    "threads",
    "limit",
    "bars",
)
READING = (
    "ns: ours, per element; yardstick: our time over its; PyTorch (the pure-PyTorch twin), "
    "peer: their time over ours; threads: gain with all of them; limit: the least time that "
    "the machine's measured limits allow for the case's bytes and operations, over ours"
)


def table(results: dict) -> Table:
    """One line per case, a rule between operations."""
    sizes = sorted({case["elements"] for case in results["cases"]})
    title = f"curvkern bench: one thread, {_sizes(sizes)} elements, medians"
    shown = Table(title, HEADERS, left=frozenset({0, 1, 2, 3, 10}))
    before = None
    for case in results["cases"]:
        if before not in (None, (case["family"], case["op"])):
            shown.rows.append(None)
        before = (case["family"], case["op"])
        shown.rows.append(row(case))
    return shown


def row(case: dict) -> list[str]:
    """The cells of one case under HEADERS."""
    ratios = case["ratio_to"]
    peer = strongest_peer(case)
    unit = case["yardstick"]
    parallel = case["all_threads"]
    own = _own_bars(case)
    bars, met = len(own), sum(bar["met"] for bar in own)
    return [
        *(case[key] for key in ("op", "region", "mode", "dtype")),
        f"{case['contestants'][OURS]['median_ns']:.2f}",
        f"{ratios[unit]:.2f}x {unit.removeprefix('torch.')}" if unit in ratios else "-",
        _speedup(1 / ratios[REFERENCE]) if REFERENCE in ratios else "-",
        f"{_speedup(1 / ratios[peer])} {peer}" if peer else "-",
        f"{parallel['speedup']:.2f}x on {parallel['threads']}" if parallel else "-",
        f"{case['limit']['share']:.0%} {case['limit']['bound']}",
        (f"{met} met" if met == bars else f"{BAD} {bars - met} of {bars}") if bars else "-",
    ]


def strongest_peer(case: dict) -> str | None:
    """The fastest contestant that is neither ours, nor the yardstick, nor our own twin."""
    peers = [
        name
        for name in case["ratio_to"]
        if name not in (case["yardstick"], REFERENCE) and not name.startswith(OURS)
    ]
    return max(peers, key=case["ratio_to"].__getitem__, default=None)


def losing(results: dict) -> list[str]:
    """Every missed bar and every rival that is faster than we are, in words."""
    lines = []
    for case in results["cases"]:
        name = _name(case)
        lines += [f"{name}: {bar['text']}" for bar in _own_bars(case) if not bar["met"]]
        for rival, ratio in case["ratio_to"].items():
            is_rival = rival != case["yardstick"] and not rival.startswith(OURS)
            if is_rival and ratio > 1:
                lines.append(f"{name}: {ratio:.2f}x the time of {rival}")
    return lines + [text for text, met in means(results) if not met]


def means(results: dict) -> list[tuple[str, bool]]:
    """The bars that geometric means over several cases have to meet: in words, and if met."""
    groups: dict[tuple[str, float], list[float]] = {}
    for case in results["cases"]:
        for bar in case["bars"]:
            if bar.get("mean"):
                groups.setdefault((bar["mean"], bar["faster"]), []).append(bar["ratio"])
    found = []
    for (name, faster), ratios in groups.items():
        if len(ratios) == 1:  # a quick run: no mean
            continue
        gain = math.exp(-sum(map(math.log, ratios)) / len(ratios))
        text = f"geometric mean over {len(ratios)} cases: {gain:.1f}x faster than {name}"
        found.append((f"{text}, bar >= {faster:g}x", gain >= faster))
    return found


def _own_bars(case: dict) -> list[dict]:
    """The bars that a case has to meet by itself."""
    return [bar for bar in case["bars"] if not bar.get("mean")]


def remarks(results: dict) -> list[str]:
    """How to read the table, the machine and its limits, what the comparisons leave out."""
    machine, limits, cases = results["machine"], results["limits"], results["cases"]
    lines = [
        READING,
        f"{machine['cpu']}, {machine['cores']} cores, ISA {machine['isa']}; "
        f"torch {machine['torch']} ({machine['torch_isa']}), curvkern {machine['curvkern']} "
        f"({machine['backend']}), commit {machine['commit'] or 'unknown'}",
        f"limits of one thread: copy {limits['copy_GBps']:.1f} GB/s, matrix product "
        f"{limits['matmul_GFLOPS_float64']:.0f} GFLOP/s in float64 and "
        f"{limits['matmul_GFLOPS_float32']:.0f} in float32",
    ]
    lines += dict.fromkeys(f"region {case['region']}: {case['where']}" for case in cases)
    lines += dict.fromkeys(case["note"] for case in cases if case["note"])
    lines += [text for text, met in means(results) if met]
    lines += [f"left out: {name}: {why}" for name, why in results["skipped"].items()]
    for case in cases:
        peaks = {name: m.get("peak_MiB") for name, m in case["contestants"].items()}
        if any(peak is not None for peak in peaks.values()):
            told = ", ".join(f"{name} {peak:.1f} MiB" for name, peak in peaks.items())
            lines.append(f"{_name(case)}: resident memory rises by: {told}")
        counts = {name: m.get("iterations") for name, m in case["contestants"].items()}
        told = ", ".join(f"{name} {n}" for name, n in counts.items() if n is not None)
        if told:
            lines.append(f"{_name(case)}: iterations: {told}")
        first = case.get("first_ratio_to")
        if first and case["bars"]:
            told = ", ".join(
                f"{_speedup(1 / ratio)} faster than {name}" for name, ratio in first.items()
            )
            lines.append(f"{_name(case)}: in the first call of a turn {told}")
        for rival, error in case["errors"].items():
            lines.append(f"{_name(case)}: {rival} failed: {error}")
        for contestant, measured in case["contestants"].items():
            if measured["finite"] < 1:
                share = f"{1 - measured['finite']:.2%}"
                lines.append(f"{_name(case)}: {share} of {contestant}'s results are not finite")
    return lines


def show(results: dict) -> None:
    """Print the remarks, then the table, then the losing cases."""
    for line in remarks(results):
        print(f"* {line}")
    table(results).print()
    lost = losing(results)
    print(f"losing cases: {len(lost) or 'none'}")
    for line in lost:
        print(f"  {line}")


def _name(case: dict) -> str:
    return " ".join(case[key] for key in ("op", "region", "mode", "dtype"))


def _speedup(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.2g}x"


def _sizes(sizes: list[int]) -> str:
    return " / ".join(
        f"2^{size.bit_length() - 1}" if size & (size - 1) == 0 else str(size) for size in sizes
    )
