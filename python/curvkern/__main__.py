"""``python -m curvkern [info | check | bench]``: what is installed, right, and fast."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the command, return the exit status.

    0 is success, 1 a missed bar of the self-test, 2 a wrong option or environment variable.
    """
    options = _parser().parse_args(arguments)
    try:
        _validate(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.command == "check":
        from . import _check

        return _check.run()
    if options.command == "bench":
        from ._bench.main import run

        run(quick=options.quick, family=options.family, output=options.json)
        return 0
    from . import _info

    facts = _info.collect()
    print(json.dumps(facts, indent=2) if options.json else _info.text(facts))
    return 0


def _validate(options: argparse.Namespace) -> None:
    """Complain about CURVKERN_BACKEND, CURVKERN_ISA and --family before any work."""
    from . import _runtime

    _runtime.backend()
    _runtime.isa()
    if options.command == "bench":
        from ._bench.main import families

        known = families()
        if options.family not in (None, *known):
            raise ValueError(f"--family: expected one of {known}, got {options.family!r}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m curvkern", description=__doc__)
    parser.add_argument("--json", action="store_true", help="info as JSON")
    commands = parser.add_subparsers(dest="command", metavar="{info,check,bench}")
    info = commands.add_parser("info", help="versions, instruction sets, CUDA (the default)")
    info.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON")
    commands.add_parser("check", help="measure every error; status 1 when one is over its bar")
    bench = commands.add_parser("bench", help="time every function beside its rivals")
    bench.add_argument("--quick", action="store_true", help="under a minute for a family")
    bench.add_argument("--family", metavar="F", help="only this family, e.g. bessel")
    bench.add_argument("--json", metavar="OUT", type=Path, help="also write the results here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
