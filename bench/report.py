"""Plots and the README's results table from bench/results/*.json: `python bench/report.py`.

Needs matplotlib, which the extra `docs` installs. `--check` writes nothing and fails when the
README is not what the JSON says, or the JSON does not hold the cases of this tree.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from curvkern._bench import report
from curvkern._bench.case import OURS, REFERENCE, Case
from curvkern._bench.main import families, load

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NOTHING = "No results are committed yet: `python bench/run.py`, then `python bench/report.py`."


def markdown(documents: list[dict]) -> str:
    """The results of all families as Markdown, losing cases included."""
    if not documents:
        return NOTHING
    return "\n\n".join(map(_family, documents))


def _family(results: dict) -> str:
    lines = [
        f"**{results['cases'][0]['family']}**, {results['created'][:10]}, one thread, medians:",
        "",
        "| " + " | ".join(report.HEADERS) + " |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for case in filter(_shown, results["cases"]):
        lines.append("| " + " | ".join(report.row(case)) + " |")
    lost = report.losing(results)
    lines += ["", "Losing cases, of all that were measured:" if lost else "No losing case."]
    lines += ["", *(f"- {line}" for line in lost)] if lost else []
    lines += ["", "Reading it:", "", *(f"- {line}" for line in report.remarks(results))]
    return "\n".join(lines)


def _shown(case: dict) -> bool:
    """The README shows cases with a bar, those on real input and networks; the JSON has all."""
    real = case["where"].startswith("real input")
    return bool(case["bars"]) or real or case["op"] == "inference"


def updated(readme: str, table: str) -> str:
    """The README with what stands between the markers replaced."""
    head, rest = readme.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def changes(results: dict, defined: list[Case]) -> list[str]:
    """How the cases of a family differ from those that were measured, in words."""
    measured = {_name(case): case for case in results["cases"]}
    known = {case.name: case for case in defined}
    left_out = set(results["skipped"])
    lines = [f"{name} was never measured" for name in known.keys() - measured.keys() - left_out]
    lines += [
        f"{name} is no case any more" for name in (measured.keys() | left_out) - known.keys()
    ]
    for name in known.keys() & measured.keys():
        before = {
            bar["rival"]: (bar["slower"], bar["faster"]) for bar in measured[name]["bars"]
        }
        # There and here, a rival that is not installed has no bar.
        now = [bar for bar in known[name].bars if bar.rival in measured[name]["ratio_to"]]
        if any(before.get(bar.rival) != (bar.slower, bar.faster) for bar in now):
            lines.append(f"{name} was measured against other bars")
    return sorted(lines)


def _name(case: dict) -> str:
    return "/".join(case[key] for key in ("op", "region", "dtype", "mode"))


def stale_results(documents: dict[str, dict], directory: Path) -> list[str]:
    """What `python bench/run.py` would add, drop or judge otherwise, by family."""
    lines = [f"{family}: no cases" for family in documents.keys() - {*families(directory)}]
    for family in families(directory):
        if family not in documents:
            lines.append(f"{family}: no results")
            continue
        found = changes(documents[family], load(family, directory))
        lines += [f"{family}: {line}" for line in found]
    return lines


def plot(results: dict, target: Path) -> None:
    """Time per element of every contestant and the limit, one panel per dtype."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = list(filter(_shown, results["cases"]))
    dtypes = sorted({case["dtype"] for case in shown}, reverse=True)
    by_dtype = [[case for case in shown if case["dtype"] == dtype] for dtype in dtypes]
    size = (8 * len(dtypes), 2 + 0.3 * max(map(len, by_dtype)))
    figure, axes = plt.subplots(
        1, len(dtypes), figsize=size, squeeze=False, layout="constrained"
    )
    for axis, dtype, cases in zip(axes[0], dtypes, by_dtype, strict=True):
        _panel(axis, cases)
        axis.set_title(dtype)
    machine = results["machine"]
    described = (machine["cpu"], f"ISA {machine['isa']}", f"torch {machine['torch']}")
    figure.suptitle(", ".join((*described, "one thread")))
    handles = {}
    for axis in axes[0]:
        found = zip(*axis.get_legend_handles_labels(), strict=True)
        handles |= {label: handle for handle, label in found}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    figure.savefig(target, dpi=110)
    plt.close(figure)


def _panel(axis, cases: list[dict]) -> None:  # type: ignore[no-untyped-def]
    names = dict.fromkeys(name for case in cases for name in case["contestants"])
    styles = {OURS: "o", REFERENCE: "s"} | {case["yardstick"]: "d" for case in cases}
    peers = iter("^v<>pP*X")
    for name in names:
        if name != OURS and name.startswith(OURS):
            continue  # our own value beside our gradients: a bar, not a rival
        marker = styles.get(name) or next(peers)
        found = [
            (case["contestants"][name]["median_ns"], i)
            for i, case in enumerate(cases)
            if name in case["contestants"]
        ]
        axis.scatter(*zip(*found, strict=True), marker=marker, label=name)
    limits = [case["limit"]["ns"] for case in cases]
    axis.scatter(limits, range(len(cases)), marker="|", color="0.4", label="limit")
    axis.set_yticks(range(len(cases)), [f"{c['op']} {c['region']} {c['mode']}" for c in cases])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("ns per element")
    axis.grid(axis="x", alpha=0.3)


def main() -> int:
    """Write or check the README's table; draw one plot per family."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only; status 1 if stale")
    options = parser.parse_args()
    paths = sorted((HERE / "results").glob("*.json"))
    documents = [json.loads(path.read_text()) for path in paths]
    before = README.read_text()
    after = updated(before, markdown(documents))
    if options.check:
        by_family = {path.stem: results for path, results in zip(paths, documents, strict=True)}
        stale = stale_results(by_family, HERE / "cases")
        for line in stale:
            print(f"bench/results/ is stale: {line}", file=sys.stderr)
        if before != after:
            print("README.md is stale: run `python bench/report.py`", file=sys.stderr)
        return int(before != after or bool(stale))
    README.write_text(after)
    for path, results in zip(paths, documents, strict=True):
        plot(results, path.with_suffix(".png"))
    print(f"README.md holds {len(documents)} families")
    return 0


if __name__ == "__main__":
    sys.exit(main())
