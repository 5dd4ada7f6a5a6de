"""The benchmarks run; what they measure belongs to a machine at rest, and is not asserted."""

from __future__ import annotations

import sys

import pytest

from benchmarks import allocation, calibrate, dataflow, orchestration, replay, rewards


@pytest.mark.parametrize(
    ("script", "options", "shown"),
    [
        (allocation, ["--repeats", "2"], "multiple"),
        (calibrate, ["--draws", "2", "--sizes", "50"], "naive broken"),
        (orchestration, ["--runs", "2"], "with a ledger"),
        (dataflow, ["--plans", "2"], "critical path"),
        (replay, ["--queries", "20"], "a CPU second"),
        (rewards, ["--batches", "1", "--prompts", "2", "--generations", "2"], "remembered"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_benchmark_runs(
    script: object,
    options: list[str],
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *options])
    script.main()  # type: ignore[attr-defined]
    assert shown in capsys.readouterr().out
