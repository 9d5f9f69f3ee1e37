"""Measure the repository's cases for the record: `python bench/run.py --family bessel`.

The runner is that of `python -m curvkern bench`; this script takes the cases of this checkout,
notes its commit, and writes bench/results/<family>.json. Run it on an idle machine, then
`python bench/report.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from curvkern._bench.main import families, run

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run every family, or the one that is named, each into its own file."""
    known = families(HERE / "cases")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=known, help="only this one")
    parser.add_argument("--quick", action="store_true", help="a look, nothing written")
    options = parser.parse_args()
    for family in [options.family] if options.family else known:
        run(
            quick=options.quick,
            family=family,
            output=None if options.quick else HERE / "results" / f"{family}.json",
            directory=HERE / "cases",
            repository=HERE.parent,
        )


if __name__ == "__main__":
    main()
