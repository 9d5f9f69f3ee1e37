"""`python -m curvkern`: info (R51), the self-test's verdicts, tables on a console."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mpmath as mp
import pytest
import torch

import curvkern
from curvkern import _check, special
from curvkern.__main__ import main
from curvkern._console import Table


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "curvkern", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


# info


def test_info_names_the_versions():  # R51
    done = command()
    assert done.returncode == 0, done.stderr
    assert curvkern.__version__ in done.stdout
    assert torch.__version__ in done.stdout


@pytest.mark.parametrize("arguments", [("--json",), ("info", "--json"), ("--json", "info")])
def test_info_as_json(arguments):  # R51
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["curvkern"] == curvkern.__version__
    assert facts["torch"]["version"] == torch.__version__
    assert facts["isa"]["in_use"] in facts["isa"]["available"]
    assert facts["threads"] >= 1
    assert isinstance(facts["cuda"]["built"], bool)
    assert facts["cuda"]["status"]
    assert facts["backend"] in ("native", "reference")


@pytest.mark.parametrize(
    ("variable", "choice"), [("CURVKERN_ISA", "v2"), ("CURVKERN_BACKEND", "reference")]
)
def test_wrong_environment_is_refused_with_the_choices(variable, choice):
    done = command(**{variable: "nonsense"})
    assert done.returncode == 2
    assert variable in done.stderr
    assert choice in done.stderr
    assert "Traceback" not in done.stderr


# check


def test_check_passes(capsys):
    assert main(["check"]) == 0
    output = capsys.readouterr().out
    assert "passed" in output
    assert "MISS" not in output


def off_by_a_few_eps(v, x, right=special.log_iv):
    return right(v, x) * (1 + 8 * torch.finfo(v.dtype).eps)


def not_a_number(v, x, right=special.iv_ratio):
    return torch.where(v > 1000, torch.nan, right(v, x))


def no_gradient_in_the_order(v, x, right=special.log_kv):
    return right(v.detach(), x) + 0 * v


def too_large_far_away(r, nu, lengthscale=1.0, right=special.matern):
    return right(r, nu, lengthscale) + 1e-6 * r


def raises(v, x):
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("function", "wrong", "quantity"),
    [
        ("log_iv", off_by_a_few_eps, "value"),
        ("iv_ratio", not_a_number, "value"),
        ("log_kv", no_gradient_in_the_order, "d/dv"),
        ("log_kve", raises, "value"),
        ("matern", too_large_far_away, "d/dr"),
    ],
)
def test_check_fails_when_a_kernel_is_wrong(monkeypatch, capsys, function, wrong, quantity):
    monkeypatch.setattr(special, function, wrong)
    assert main(["check"]) == 1
    output = capsys.readouterr().out
    missed = [line.split() for line in output.splitlines() if "MISS" in line]
    assert missed
    # the law is built on iv_ratio
    assert {row[0] for row in missed} - {"VonMisesFisher"} == {function}
    assert quantity in {row[1] for row in missed}
    assert function in output.splitlines()[-1]


def test_check_table_agrees_with_mpmath():
    """The table was made with its own formulas; mpmath's functions are the second opinion."""
    path = Path(_check.__file__).with_name("bessel.json")
    points = json.loads(path.read_text())["points"]
    tested = [p for p in points if p["v"] < 200 and p["x"] < 2000]
    assert len(tested) > 30
    with mp.workdps(60):
        for point in tested:
            v, x = mp.mpf(point["v"]), mp.mpf(point["x"])
            for name, truth in [
                ("log_iv", mp.log(mp.besseli(v, x))),
                ("log_kv", mp.log(mp.besselk(v, x))),
                ("log_hyp0f1", mp.log(mp.hyp0f1(v + 1, x * x / 4))),
                ("iv_ratio", mp.besseli(v + 1, x) / mp.besseli(v, x)),
                ("kv_ratio", mp.besselk(v + 1, x) / mp.besselk(v, x)),
                *([("log_iv_dv", -mp.besselk(0, x) / mp.besseli(0, x))] if v == 0 else []),
            ]:
                high, low = map(mp.mpf, point[name])
                tolerance = abs(truth) * mp.mpf("1e-30") + mp.mpf("1e-330")  # underflow
                assert abs(high + low - truth) <= tolerance, (name, v, x)


# console


def test_tables_and_progress_without_rich(monkeypatch, capsys):
    for name in ("rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    from curvkern._console import progress

    table = Table("title", ["name", "n"])
    table.rows += [["long name", "1"], None, ["x", "100"]]
    table.print()
    assert list(progress([("first", 1), ("second", 2)], "work")) == [1, 2]
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0] == "title"
    assert "long name    1" in lines
    assert "x          100" in lines
    assert "work [2/2] second" in output.err


def test_rich_table_is_not_cut_off_away_from_a_terminal(capsys):
    pytest.importorskip("rich", reason="rich is not installed: plain tables only")
    cells = [f"cell-{i}-{'x' * 30}" for i in range(8)]
    Table("wide", [str(i) for i in range(8)], rows=[cells]).print()
    output = capsys.readouterr().out
    assert all(cell in output for cell in cells)
