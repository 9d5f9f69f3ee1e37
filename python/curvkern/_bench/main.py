"""Runs the cases of a directory: ``python -m curvkern bench`` and ``bench/run.py``."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from datetime import datetime, timezone
from pathlib import Path

from .._console import progress
from . import machine, report
from .case import Case
from .runner import QUICK, QUICK_SECONDS, Settings, measure

SCHEMA = 1  # of the JSON; grows when a reader of old files would be misled
# The wheel carries a copy of bench/cases; an editable install reads the checkout's.
_PACKAGED = Path(__file__).with_name("cases")
_CHECKOUT = Path(__file__).resolve().parents[3] / "bench" / "cases"
CASES = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def families(directory: Path = CASES) -> list[str]:
    """The families that have a file of cases."""
    return sorted(path.stem for path in directory.glob("[!_]*.py"))


def load(family: str, directory: Path = CASES) -> list[Case]:
    """The cases of one family, from ``<directory>/<family>.py``."""
    path = directory / f"{family}.py"
    spec = importlib.util.spec_from_file_location(f"curvkern_bench_{family}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.cases()


def run(
    *,
    quick: bool = False,
    family: str | None = None,
    output: Path | None = None,
    directory: Path = CASES,
    settings: Settings | None = None,
    repository: Path | None = None,
) -> dict:
    """Measure, print the table, write the JSON if asked, and return its content."""
    names = [family] if family else families(directory)
    chosen = [case for name in names for case in load(name, directory)]
    if quick:
        chosen = [case for case in chosen if case.quick]
    settings = settings or (_quick_settings(len(chosen)) if quick else Settings())
    described = machine.describe(repository)
    limits = machine.limits()
    skipped = {case.name: f"needs {', '.join(m)}" for case in chosen if (m := case.missing())}
    named = [(case.name, case) for case in chosen if case.name not in skipped]
    for case in chosen:
        skipped |= {name: f"needs {m}" for name, m in case.missing_rivals().items()}
    cases = [measure(case, settings, limits) for case in progress(named, "bench")]
    results = {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": described,
        "limits": limits,
        "settings": {"quick": quick, "threads": 1, **dataclasses.asdict(settings)},
        "cases": cases,
        "skipped": skipped,
    }
    report.show(results)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {output}")
    return results


def _quick_settings(count: int) -> Settings:
    """Shares QUICK_SECONDS among the cases, so that more families do not take longer."""
    return dataclasses.replace(QUICK, budget=min(QUICK.budget, QUICK_SECONDS / max(count, 1)))
