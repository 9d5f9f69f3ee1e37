"""The benchmark: its runner, its JSON, and the README's table made of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from curvkern.__main__ import main
from curvkern._bench import main as bench
from curvkern._bench import report, runner, transport
from curvkern._bench.case import OURS, Bar, Case

ROOT = Path(__file__).resolve().parents[1]
TINY = runner.Settings(elements=64, budget=0.0, min_rounds=2, max_rounds=2)
LIMITS = {
    "copy_GBps": 10.0,
    "matmul_GFLOPS_float64": 50.0,
    "matmul_GFLOPS_float32": 100.0,
    "exp_ns_float64": 2.0,
    "exp_ns_float32": 1.0,
}


def case(contestants: dict, **fields) -> Case:
    """A case around ready-made calls."""
    facts = {
        "family": "toy",
        "op": "copy",
        "region": "all",
        "mode": "value",
        "dtype": "float64",
        "where": "everywhere",
        "yardstick": "sleep",
        "bytes": 16.0,
        "flops": 100.0,
    }
    return Case(**{**facts, **fields}, setup=lambda n: contestants)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The JSON of a tiny run through the command line."""
    path = tmp_path_factory.mktemp("bench") / "out.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "_quick_settings", lambda count: TINY)
        assert main(["bench", "--quick", "--family", "bessel", "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_bench_json_has_every_field(written):
    assert written["schema"] == 1
    assert written["settings"]["quick"] is True
    assert {"cpu", "cores", "isa", "torch", "curvkern", "commit"} <= set(written["machine"])
    assert set(written["limits"]) == set(LIMITS)
    assert all(value > 0 for value in written["limits"].values())
    regions = {(case["op"], case["region"]) for case in written["cases"]}
    assert {(op, r) for op in ("log_iv", "log_kv") for r in "abcd"} <= regions
    for measured in written["cases"]:
        assert measured["errors"] == {}, measured["op"]
        assert {OURS, measured["yardstick"], "pure PyTorch"} <= set(measured["contestants"])
        for times in measured["contestants"].values():
            assert times["rounds"] == TINY.min_rounds
            assert 0 < times["min_ns"] <= times["median_ns"]
        assert measured["limit"]["bound"] in ("memory", "compute")
        for bar in measured["bars"]:
            assert bar["ratio"] == measured["ratio_to"][bar["rival"]]


def test_bench_leaves_nothing_of_ours_out(written):
    ours = [m["contestants"][OURS]["finite"] for m in written["cases"]]
    assert ours
    assert min(ours) == 1.0


def test_bench_table_has_a_line_per_case(written):
    table = report.table(written)
    assert sum(row is not None for row in table.rows) == len(written["cases"])
    assert "lgamma" in table.plain()


def test_bench_of_unknown_family_names_the_known(capsys):
    assert main(["bench", "--family", "bessle"]) == 2
    message = capsys.readouterr().err
    assert "bessle" in message
    assert "bessel" in message


def test_losing_cases_are_listed():
    fast, slow = (lambda: torch.zeros(4)), (lambda: time.sleep(0.002) or torch.zeros(4))
    contestants = {OURS: slow, "sleep": fast, "rival": fast}
    bars = (Bar("sleep", slower=1.5), Bar("rival", faster=2))
    measured = runner.measure(case(contestants, bars=bars), TINY, LIMITS)
    assert [bar["met"] for bar in measured["bars"]] == [False, False]
    lost = report.losing({"cases": [measured]})
    assert len(lost) == 3  # two bars, and the rival that is faster
    assert "MISS 2 of 2" in report.row(measured)


def test_bars_met_are_told():
    contestants = {
        OURS: lambda: torch.zeros(4),
        "sleep": lambda: time.sleep(0.002) or torch.zeros(4),
    }
    bars = (Bar("sleep", slower=1.0), Bar("sleep", faster=2), Bar("absent", slower=1.0))
    measured = runner.measure(case(contestants, bars=bars), TINY, LIMITS)
    assert [bar["met"] for bar in measured["bars"]] == [True, True]
    assert report.losing({"cases": [measured]}) == []
    assert report.row(measured)[-1] == "2 met"


def test_first_calls_of_turns_are_told_apart(written):
    count = 0

    def cold_at_first():
        nonlocal count
        count += 1
        if count > 2 and (count - 2) % 4 == 1:  # two calls come before the first turn
            time.sleep(0.02)
        return torch.zeros(1)

    def steady():
        time.sleep(0.001)
        return torch.zeros(1)

    contestants = {OURS: cold_at_first, "sleep": steady}
    bars = (Bar("sleep", faster=2),)
    measured = runner.measure(case(contestants, bars=bars, repeats=3), TINY, LIMITS)
    assert measured["ratio_to"]["sleep"] < 0.5
    assert measured["first_ratio_to"]["sleep"] > 5
    ours = measured["contestants"][OURS]
    assert ours["first_ns"] > 10 * ours["median_ns"]
    assert ours["rounds"] == 2
    assert [bar["met"] for bar in measured["bars"]] == [True]
    told = [line for line in report.remarks({**written, "cases": [measured]}) if "turn" in line]
    assert len(told) == 1
    assert "faster than sleep" in told[0]


def test_of_several_rivals_the_quickest_counts():
    def sleeper(seconds):
        return lambda: time.sleep(seconds) or torch.zeros(1)

    contestants = {OURS: sleeper(0.004), "sleep": sleeper(0.02), "rival": sleeper(0.001)}
    bars = (Bar(("absent", "sleep", "rival"), faster=1),)
    (bar,) = runner.measure(case(contestants, bars=bars), TINY, LIMITS)["bars"]
    assert bar["rival"] == "rival"
    assert not bar["met"]
    assert "rival" in bar["text"]


def test_bars_of_a_mean_are_judged_over_all_cases():
    bar = {"mean": "the best", "faster": 3, "met": False, "text": "one by one"}
    ratios = (1 / 2, 1 / 8)  # a mean of 4
    cases = [
        {**dict.fromkeys(("op", "region", "mode", "dtype"), ""), "yardstick": "", "errors": {},
         "ratio_to": {}, "contestants": {}, "bars": [{**bar, "ratio": ratio}]}
        for ratio in ratios
    ]  # fmt: skip
    assert report.losing({"cases": cases}) == []
    assert report.means({"cases": cases[:1]}) == []
    ((text, met),) = report.means({"cases": cases})
    assert met
    assert "4.0x faster than the best" in text
    lost = report.losing({"cases": [cases[0], cases[0]]})  # a mean of 2
    assert len(lost) == 1
    assert "2.0x faster" in lost[0]


def test_what_is_not_installed_is_told(tmp_path, capsys):
    (tmp_path / "toy.py").write_text(
        "import torch\n"
        "from curvkern._bench.case import OURS, Case\n"
        "def cases():\n"
        "    return [Case('toy', 'copy', 'all', 'value', 'float64', 'everywhere',\n"
        "                 lambda n: {OURS: lambda: torch.zeros(1)}, 'sleep', 1.0, 1.0,\n"
        "                 rivals=(('rival', 'no_such_module'),))]\n"
    )
    results = bench.run(family="toy", directory=tmp_path, settings=TINY)
    assert results["skipped"] == {"rival": "needs no_such_module"}
    assert "left out: rival: needs no_such_module" in capsys.readouterr().out


def test_a_slow_rival_plays_one_round():
    calls = []
    contestants = {
        OURS: lambda: torch.zeros(1),
        "sleep": lambda: calls.append(0) or time.sleep(0.02) or torch.zeros(1),
    }
    settings = runner.Settings(elements=1, budget=0.0, min_rounds=5, max_rounds=5, slow=0.001)
    measured = runner.measure(case(contestants), settings, LIMITS)
    assert measured["contestants"]["sleep"]["rounds"] == 1
    assert measured["contestants"][OURS]["rounds"] == 5
    assert len(calls) == 2  # to warm up, and in the round


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_peak_of_memory_is_told():
    contestants = {
        OURS: lambda: torch.zeros(1),
        "sleep": lambda: torch.ones(2**24, dtype=torch.float32)[:1],  # 64 MiB
        "pieces": lambda: [torch.ones(2**16, dtype=torch.float32) for _ in range(256)][-1],
    }
    measured = runner.measure(case(contestants, memory=True), TINY, LIMITS)
    peak = {name: told["peak_MiB"] for name, told in measured["contestants"].items()}
    assert peak[OURS] < 32
    assert 56 < peak["sleep"] < 80
    assert 56 < peak["pieces"] < 80  # which the calls before have freed


def test_a_solver_short_of_the_target_is_left_out_with_its_error(written):
    weights = np.full(2, 0.5)
    problem = transport.Problem(weights, weights, np.zeros((2, 2)), 1.0)
    plan = np.full((2, 2), 0.25)
    duals = np.full(2, np.log(0.5)), np.full(2, np.log(0.5))
    assert transport.l1_error(problem, plan) == transport.l1_error(problem, duals) == 0
    contestants = {
        OURS: transport.Contestant(lambda _: transport.Found(duals, 7), [problem, problem]),
        "sleep": transport.Contestant(lambda _: transport.Found(plan * (1 + 1e-8)), [problem]),
        "silent": transport.Contestant(lambda _: transport.Found(plan), [problem]),
    }
    measured = runner.measure(case(contestants), TINY, LIMITS)
    counts = {name: told["iterations"] for name, told in measured["contestants"].items()}
    assert counts == {OURS: 14, "silent": None}
    assert "L1 error 2.0e-08" in measured["errors"]["sleep"]
    remarks = report.remarks({**written, "cases": [measured]})
    assert "copy all value float64: iterations: curvkern 14" in remarks


def test_ratios_are_taken_within_a_round():
    """When every second round is slow for everybody, the ratio does not move."""
    calls = {OURS: 0, "sleep": 0}

    def sleeper(name, seconds):
        def call():
            calls[name] += 1
            time.sleep(seconds * (4 if calls[name] % 2 else 1))
            return torch.zeros(1)

        return call

    contestants = {OURS: sleeper(OURS, 0.004), "sleep": sleeper("sleep", 0.002)}
    settings = runner.Settings(elements=1, budget=0.0, min_rounds=6, max_rounds=6)
    measured = runner.measure(case(contestants), settings, LIMITS)
    assert measured["ratio_to"]["sleep"] == pytest.approx(2, rel=0.25)


def test_slow_rival_sits_out_later_rounds_and_failing_rival_is_reported():
    contestants = {
        OURS: lambda: torch.zeros(4),
        "sleep": lambda: time.sleep(0.02) or torch.zeros(4),
        "broken": lambda: 1 / 0,
        "partly": lambda: torch.tensor([1.0, float("inf")]),
    }
    settings = runner.Settings(elements=4, budget=0.05, min_rounds=3, max_rounds=10)
    measured = runner.measure(case(contestants), settings, LIMITS)
    assert measured["contestants"]["sleep"]["rounds"] == 3
    assert measured["contestants"][OURS]["rounds"] >= 3
    assert measured["errors"] == {"broken": "ZeroDivisionError: division by zero"}
    assert measured["contestants"]["partly"]["finite"] == 0.5


def test_our_own_failure_ends_the_run():
    broken = {OURS: lambda: 1 / 0, "sleep": lambda: torch.zeros(4)}
    with pytest.raises(RuntimeError, match=r"copy/all.*division by zero"):
        runner.measure(case(broken), TINY, LIMITS)


def test_runner_restores_the_number_of_threads():
    before = torch.get_num_threads()
    contestants = {OURS: lambda: torch.zeros(4), "sleep": lambda: 1 / 0}
    runner.measure(case(contestants), TINY, LIMITS)
    assert torch.get_num_threads() == before


def test_limit_is_the_larger_of_memory_and_compute():
    contestants = {OURS: lambda: torch.zeros(4)}
    memory = runner.measure(case(contestants, bytes=160.0), TINY, LIMITS)["limit"]
    compute = runner.measure(case(contestants, flops=5000.0), TINY, LIMITS)["limit"]
    assert (memory["bound"], memory["ns"]) == ("memory", 16.0)
    assert (compute["bound"], compute["ns"]) == ("compute", 100.0)


def test_case_without_its_modules_is_left_out_with_a_reason(monkeypatch, capsys):
    impossible = case({OURS: lambda: torch.zeros(4)}, needs=("no_such_module",))
    possible = case({OURS: lambda: torch.zeros(4)}, op="other")
    monkeypatch.setattr(bench, "load", lambda *_: [impossible, possible])
    monkeypatch.setattr(bench.machine, "limits", lambda: LIMITS)
    results = bench.run(family="toy", settings=TINY)
    assert len(results["cases"]) == 1
    assert results["skipped"] == {impossible.name: "needs no_such_module"}
    assert "no_such_module" in capsys.readouterr().out


def test_bar_is_one_sided():
    with pytest.raises(ValueError, match="exactly one"):
        Bar("rival")
    with pytest.raises(ValueError, match="exactly one"):
        Bar("rival", slower=1, faster=2)


# the README


@pytest.fixture(scope="module")
def readme_tool():
    spec = importlib.util.spec_from_file_location("bench_report", ROOT / "bench" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_table_is_what_the_results_say(readme_tool):
    paths = sorted((ROOT / "bench" / "results").glob("*.json"))
    documents = [json.loads(path.read_text()) for path in paths]
    readme = (ROOT / "README.md").read_text()
    assert readme == readme_tool.updated(readme, readme_tool.markdown(documents))


def test_results_hold_the_cases_of_this_tree(readme_tool):
    paths = (ROOT / "bench" / "results").glob("*.json")
    documents = {path.stem: json.loads(path.read_text()) for path in paths}
    assert readme_tool.stale_results(documents, ROOT / "bench" / "cases") == []


def test_a_changed_set_of_cases_is_noticed(readme_tool, monkeypatch, capsys):
    """One case renamed, one given another bar, one family without results: status 1."""
    defined = bench.load("bessel", ROOT / "bench" / "cases")
    first, second, *rest = (case for case in defined if case.bars)
    others = [case for case in defined if not case.bars]
    renamed = dataclasses.replace(first, region="z")
    rebarred = dataclasses.replace(second, bars=(Bar(second.yardstick, slower=0.5),))

    def load(family, directory):
        right = bench.load(family, directory)
        return [renamed, rebarred, *rest, *others] if family == "bessel" else right

    monkeypatch.setattr(readme_tool, "load", load)
    monkeypatch.setattr(readme_tool, "families", lambda d: [*bench.families(d), "fisher"])
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    assert readme_tool.main() == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"bench/results/ is stale: bessel: {line}"
        for line in sorted(
            [
                f"{first.name} is no case any more",
                f"{renamed.name} was never measured",
                f"{second.name} was measured against other bars",
            ]
        )
    ] + ["bench/results/ is stale: fisher: no results"]
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    assert readme_tool.main() == 0


def test_readme_table_shows_bars_and_losing_cases(readme_tool, written):
    text = readme_tool.markdown([written])
    assert text.count("| log_iv | ") >= 4
    for line in report.losing(written):
        assert line in text


def test_plots_are_written(readme_tool, written, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: no plots")
    readme_tool.plot(written, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
