"""`r2graph calibrate`: promises are kept as often as said, and refused where data do not do."""

from __future__ import annotations

import json
from dataclasses import asdict
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from random import Random
from statistics import fmean

import pytest
from typer.testing import CliRunner, Result

from benchmarks.calibrate import DELTA, made_up, measure
from r2graph import create_r2_graph
from r2graph.calibrate.betting import enough, interval, p_value
from r2graph.calibrate.promise import for_cost, for_quality, intervals, shuffled
from r2graph.calibrate.records import Done, Records, read
from r2graph.cli import app
from r2graph.errors import ConfigError
from r2graph.evaluation.outcomes import Outcome
from r2graph.trace import Trace, trace, write_traces
from tests.fakes import echo, pool_of

N = 400


def draws(mean: float, times: int, n: int = 300) -> list[list[float]]:
    """Gains of that mean, at least -1: rare heavy losses and many small gains."""
    random = Random(7)
    lost = (0.1 - mean) / 1.1
    return [[-1.0 if random.random() < lost else 0.1 for _ in range(n)] for _ in range(times)]


# Betting


def test_a_mean_of_zero_is_rejected_as_seldom_as_promised() -> None:
    rejected = [p_value(gains, 1.0, 0.1, 0.1) <= 0.1 for gains in draws(0.0, 400)]
    assert 0 < fmean(rejected) <= 0.1


def test_a_mean_above_zero_is_seen() -> None:
    rejected = [p_value(gains, 1.0, 0.1, 0.05) <= 0.05 for gains in draws(0.05, 100, n=800)]
    assert fmean(rejected) > 0.9


def test_an_interval_holds_the_mean_as_often_as_promised_and_shrinks() -> None:
    held, widths = [], []
    for gains in draws(0.03, 60):
        low, high = interval(gains, -1.0, 0.1, 0.1)
        held.append(low <= 0.03 <= high)
        widths.append(high - low)
    assert fmean(held) >= 0.9
    assert fmean(widths) < 0.15


def test_an_interval_of_a_share_near_one_is_as_tight_as_its_upper_end_allows() -> None:
    random, held, above = Random(7), [], []
    for _ in range(60):
        low, high = interval([float(random.random() < 0.95) for _ in range(400)], 0.0, 1.0, 0.1)
        held.append(low <= 0.95 <= high)
        above.append(high - 0.95)
    assert fmean(held) >= 0.9
    assert 0.01 < fmean(above) < 0.04


def test_intervals_stay_within_the_bounds_of_the_values() -> None:
    assert interval([1.0] * 50, 0.0, 1.0, 0.05)[1] == 1.0
    low, high = interval([0.0] * 50, 0.0, 1.0, 0.05)
    assert low == 0.0
    assert 0.02 < high < 0.3


def test_what_is_called_enough_does_about_half_the_time() -> None:
    [gains] = draws(0.03, 1, n=20_000)
    n = enough(gains, 1.0, 0.05)
    assert n is not None
    rejected = [p_value(each, 1.0, 0.1, 0.05) <= 0.05 for each in draws(0.03, 100, n=n)]
    assert 0.2 < fmean(rejected) < 0.9
    assert enough([-0.1, 0.05], 1.0, 0.05) is None


# Promises


@pytest.mark.parametrize(("of", "target"), [("quality", 0.95), ("cost", 7.9e-6)])
def test_a_promise_is_broken_no_more_often_than_delta_where_a_naive_choice_breaks_it(
    of: str, target: float
) -> None:
    figures = measure(made_up(), target, of, n=300, draws=100)
    assert figures.broken <= DELTA
    assert figures.refused < 0.2
    assert figures.saved > 0.3
    assert figures.naive_broken > 3 * DELTA


def records(levels: dict[int, float], others: dict[str, float], n: int = N) -> Records:
    """`n` queries in an order of no meaning, the first of them right; a level costs its number."""
    queries = shuffled(map(str, range(n)))
    order = Random(1).sample(queries, n)

    def done(share: float, usd: float) -> dict[str, Done]:
        return {query: Done(at < share * n, usd) for at, query in enumerate(order)}

    return Records(
        {level: done(share, level) for level, share in levels.items()},
        {name: done(share, 10) for name, share in others.items()},
    )


def test_the_lowest_level_that_holds_is_chosen_and_none_is_tested_below_the_first_that_fails() -> (
    None
):
    given = records({2: 0.9, 4: 0.5, 6: 0.85, 9: 0.9}, {"single-1": 0.8})
    found = for_quality(given, 0.95, ["single-1"], 0.05)
    assert found.chosen is not None
    assert found.chosen.quality == 0.6
    assert [test.quality for test in found.tests] == [0.9, 0.6, 0.4]


def test_the_best_of_several_rivals_is_the_one_that_counts() -> None:
    given = records({5: 0.7}, {"single-1": 0.3, "single-2": 0.8, "single-3": 0.5})
    assert for_quality(given, 0.95, ["single-1", "single-3"], 0.05).chosen is not None
    against_all = for_quality(given, 0.95, given.singles, 0.05)
    assert against_all.chosen is None
    assert against_all.tests[0].rival == "single-2"


def test_queries_that_a_hash_has_sorted_deceive_nobody() -> None:
    """Right are those with the lowest hashes: in their order the first would look like a proof."""
    queries = sorted(map(str, range(N)), key=lambda query: sha256(query.encode()).digest())
    own = {query: Done(at < 0.5 * N, 1) for at, query in enumerate(queries)}
    rival = {query: Done(at % 2 == 0, 1) for at, query in enumerate(queries)}
    in_order = [bool(own[query].right) - bool(rival[query].right) for query in queries]
    assert p_value(in_order, 1.0, 1.0, 0.05) < 0.05
    found = for_quality(Records({5: own}, {"single-1": rival}), 1.0, ["single-1"], 0.05)
    assert found.tests[0].p > 0.05


def test_costs_choose_the_highest_level_that_is_cheap_enough() -> None:
    given = records({1: 0.5, 5: 0.6, 9: 0.7}, {})
    found = for_cost(given, usd=6.0, max_usd=20.0, delta=0.05)
    assert found.chosen is not None
    assert found.chosen.quality == 0.5
    within = intervals(given, 5, 0.05, 20.0)
    assert within.usd is not None
    assert within.usd[0] <= 5 <= within.usd[1]


def test_a_cost_above_what_is_called_the_most_is_an_error() -> None:
    with pytest.raises(ConfigError, match="cost more than"):
        for_cost(records({1: 0.5, 9: 0.7}, {}), usd=2.0, max_usd=8.0, delta=0.05)


# The command


def calibrate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def lines(given: Records) -> str:
    """The outcomes of a file that `r2graph eval --out` writes."""
    methods = {f"router@{level / 10:g}": done for level, done in given.levels.items()}
    return '{"format": 1, "settings": ""}\n' + "".join(
        json.dumps(asdict(outcome), default=str) + "\n"
        for method, done in (methods | given.others).items()
        for query, each in done.items()
        for usd in [Decimal(str(each.usd))]
        for outcome in [Outcome("arith", method, query, bool(each.right), usd, usd, 1, 0.0)]
    )


@pytest.fixture
def outcomes(tmp_path: Path) -> Path:
    file = tmp_path / "outcomes.jsonl"
    file.write_text(lines(records({3: 0.6, 7: 0.8, 10: 0.85}, {"single-1": 0.8, "plan-1": 0.9})))
    return file


def test_the_command_prints_the_quality_to_use(outcomes: Path) -> None:
    done = calibrate(outcomes, "--target-quality", "0.95")
    assert done.exit_code == 0, done.output
    assert "create_r2_graph(…, quality=0.7)" in done.output
    assert "accuracy 80.0% (" in done.output
    assert "400 queries" in done.output


def test_the_order_of_a_file_does_not_matter(outcomes: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    head, *rest = outcomes.read_text().splitlines()
    other.write_text("\n".join([head, *reversed(rest)]) + "\n")
    first, second = (json.loads(calibrate(file, "--json").output) for file in (outcomes, other))
    assert first["tests"] == second["tests"]


def test_a_promise_without_support_exits_with_1_and_says_how_many_queries_are_wanting(
    outcomes: Path,
) -> None:
    close = calibrate(outcomes, "--target-quality", "0.94", "--against", "plan-1")
    assert close.exit_code == 1
    assert "about" in close.output
    assert "more queries like these" in close.output
    hopeless = calibrate(outcomes, "--target-quality", "1", "--against", "plan-1")
    assert hopeless.exit_code == 1
    assert "more are of no use" in hopeless.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target-cost", "1"], "--max-usd"),
        (["--target-cost", "1", "--target-quality", "0.9"], "give one"),
        (["--target-cost", "30", "--max-usd", "20"], "between 0 and"),
        (["--against", "single-4"], "no outcome of 'single-4'"),
        (["--router", "sft"], "router@all"),
    ],
)
def test_what_cannot_be_calibrated_is_said(outcomes: Path, options: list[str], said: str) -> None:
    done = calibrate(outcomes, *options)
    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize("text", ["", "SECRET", "[1]", '{"benchmark": "SECRET"}', "{}\n{}"])
def test_a_file_of_something_else_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    done = calibrate(file)
    assert done.exit_code == 2
    assert "SECRET" not in done.output
    assert calibrate(tmp_path / "none").exit_code == 2


# Traces


@pytest.fixture(scope="module")
def run() -> Trace:
    graph = create_r2_graph(pool_of(echo()), quality=0.4)
    return trace(graph.invoke("hello"), right=True)


def test_traces_are_records_of_the_levels_that_they_ran_at(run: Trace, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    again = run.model_copy(update={"right": False})
    other = run.model_copy(update={"query": "you", "quality": 0.95, "right": None})
    write_traces(file, [run, again, other])
    found = read([file]).levels
    assert found == {
        4: {"hello": Done(True, float(run.cost_usd))},
        10: {"you": Done(None, float(run.cost_usd))},
    }


def test_traces_of_another_policy_are_refused(run: Trace, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    write_traces(file, [run, run.model_copy(update={"router": "another"})])
    with pytest.raises(ConfigError, match="several pools or routers"):
        read([file])
    [step] = run.steps
    drawn = step.model_copy(update={"choice": step.choice.model_copy(update={"propensity": 0.5})})
    write_traces(file, [run.model_copy(update={"steps": (drawn,)})])
    with pytest.raises(ConfigError, match="at random"):
        read([file])


def test_traces_and_outcomes_of_rivals_go_together(run: Trace, tmp_path: Path) -> None:
    """The router's own runs, held against a single model that was asked the same queries."""
    given = records({}, {"single-1": 0.8})
    traces, rivals = tmp_path / "runs.jsonl", tmp_path / "rivals.jsonl"
    rivals.write_text(lines(given))
    write_traces(
        traces,
        [
            run.model_copy(update={"query": q, "right": d.right})
            for q, d in given.others["single-1"].items()
        ],
    )
    done = calibrate(traces, rivals, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["chosen"]["quality"] == 0.4
