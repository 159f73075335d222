"""What a bench report must look like, and how the bench command answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.__main__ import BENCHES
from tests.bench.frame import BenchError, Report, describe_machine, percentile

ROOT = Path(__file__).resolve().parents[3]
FIGURES = {"drain_per_s": 9000.0, "latency_p99_ms_at_200": 40.0}
BASELINES = {"native_drain_per_s": 100_000.0}
RATIOS = {"drain_vs_native": 0.09}


def report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "bench": "example",
        "seed": 7,
        "machine": describe_machine(),
        "method": "as told",
        "figures": FIGURES,
        "baselines": BASELINES,
        "ratios": RATIOS,
    }
    return Report(**{**values, **changes})


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_report_is_one_json_object_with_the_agreed_keys() -> None:
    told = json.loads(report().as_json())
    assert list(told) == [
        "bench",
        "machine",
        "seed",
        "method",
        "figures",
        "baselines",
        "ratios",
    ]
    assert (told["figures"], told["baselines"], told["ratios"]) == (FIGURES, BASELINES, RATIOS)
    assert told["machine"]["cpus_count"] >= 1
    assert told["machine"]["memory_gib"] > 0
    assert told["machine"]["cpu_model"]


@pytest.mark.parametrize("name", ["drain", "latency_p99", "drain_per_s_mean", "latency_at_200"])
def test_a_name_without_its_unit_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unit"):
        report(figures={name: 1.0})
    with pytest.raises(ValueError, match="unit"):
        report(baselines={**BASELINES, name: 1.0})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_no_finite_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        report(figures={"drain_per_s": value})
    with pytest.raises(ValueError, match="finite"):
        report(ratios={"drain_vs_native": value})


def test_a_ratio_needs_its_baseline_in_the_same_report() -> None:
    with pytest.raises(ValueError, match="no baseline 'bare_engine'"):
        report(ratios={"drain_vs_bare_engine": 0.5})
    with pytest.raises(ValueError, match="baseline"):
        report(baselines={})
    with pytest.raises(ValueError, match="compared with what"):
        report(ratios={"drain_ratio": 0.5})


def test_a_growth_compares_two_figures_of_the_report_and_needs_no_baseline() -> None:
    assert report(ratios={"cost_growth": 1.02}).ratios == {"cost_growth": 1.02}
    with pytest.raises(ValueError, match="finite"):
        report(ratios={"cost_growth": float("nan")})


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([3.0], 0.99) == 3
    with pytest.raises(BenchError, match="no values"):
        percentile([], 0.5)


def test_an_unknown_bench_is_named_with_the_known_ones() -> None:
    answer = run("nonsense", "--json")
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert "nonsense" in answer.stderr
    assert all(name in answer.stderr for name in BENCHES)


def test_the_list_names_every_bench_with_what_it_measures() -> None:
    answer = run("list")
    assert answer.returncode == 0
    assert [line.split(":")[0] for line in answer.stdout.splitlines()] == list(BENCHES)
    assert all(line.split(": ")[1] for line in answer.stdout.splitlines())
