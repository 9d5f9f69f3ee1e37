"""Measure the repository's cases for the record: `python bench/run.py --family bessel`.

The runner is that of `python -m curvkern bench`; this script takes the cases of this checkout,
notes its commit, and writes bench/results/<family>.json. Run it on an idle machine, then
`python bench/report.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from curvkern._bench.main import families, run
from curvkern._bench.runner import Settings

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run every family, or the one that is named, each into its own file.

    The JSON has the settings.
    """
    known = families(HERE / "cases")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=known, help="only this one")
    parser.add_argument("--quick", action="store_true", help="a look, nothing written")
    parser.add_argument("--budget", type=float, help="seconds a case, instead of 6")
    parser.add_argument("--rounds", type=int, help="rounds at least, instead of 7")
    options = parser.parse_args()
    given = {"budget": options.budget, "min_rounds": options.rounds}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    for family in [options.family] if options.family else known:
        run(
            quick=options.quick,
            settings=None if options.quick else settings,
            family=family,
            output=None if options.quick else HERE / "results" / f"{family}.json",
            directory=HERE / "cases",
            repository=HERE.parent,
        )


if __name__ == "__main__":
    main()
