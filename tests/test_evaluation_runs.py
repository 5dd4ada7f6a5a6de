"""Evaluations that are resumed, stopped by their budget, or only priced."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from r2graph.allocate import AllocateContext, Choice, within_budget
from r2graph.cli import app
from r2graph.errors import ConfigError, LimitExceeded
from r2graph.evaluation.estimate import estimate
from r2graph.evaluation.lineup import Lineup, chosen_methods, is_derived
from r2graph.evaluation.methods import LOWERED, Purse
from r2graph.evaluation.outcomes import Outcome
from r2graph.evaluation.record import Record, complete, read_outcomes
from r2graph.evaluation.run import Evaluation, evaluate
from r2graph.evaluation.setup import Setup
from r2graph.ledger import Budget, Ledger
from r2graph.plan import single
from r2graph.pool import ModelPool
from r2graph.pricing import Usage
from tests.chat_fakes import openai_server
from tests.fakes import FakeChat, ProviderError, pool_of
from tests.test_evaluation_baselines import instructed, write

N = 6
QUERY = "Ann has {} hens and buys one. How many now?"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """GSM8K of six questions."""
    records = [{"question": QUERY.format(n), "answer": f"#### {n + 1}"} for n in range(1, N + 1)]
    write(tmp_path / "data" / "gsm8k" / "test.jsonl", *records)
    return tmp_path / "data"


def farmer(offset: int, **options: object) -> FakeChat:
    """Answers with a number of hens, right if the offset is 1."""

    def says(text: str) -> str | None:
        found = next((n for n in range(1, N + 1) if QUERY.format(n) in text), None)
        return None if found is None else f"answer: {found + offset}"

    return instructed(says, **options)


def farm(*offsets: int) -> ModelPool:
    return pool_of(*map(farmer, offsets), language="any")


def calls(pool: ModelPool) -> list[int]:
    return [len(spec.chat.calls) for spec in pool.members]  # type: ignore[attr-defined]


def run(setup: Setup, told: list[tuple[str, str]] | None = None) -> Evaluation:
    return evaluate(setup, ["gsm8k"], lambda *both: (told if told is not None else []).append(both))


# On record


def test_a_rerun_asks_only_what_is_not_on_record(data: Path, tmp_path: Path) -> None:
    pool, out = farm(0, 1), tmp_path / "out.jsonl"
    setup = Setup(pool, ("single-1", "single-2", "oracle"), data=data, out=out, limit=3)
    first = run(setup)
    assert calls(pool) == [3, 3]
    told: list[tuple[str, str]] = []
    assert run(setup, told).outcomes == first.outcomes
    assert calls(pool) == [3, 3]
    assert len(told) == 6
    more = run(replace(setup, methods=(*setup.methods, "cot-1"), limit=N)).outcomes
    assert calls(pool) == [6 + 6, 6]
    assert len(more) == 4 * N
    assert {o.method for o in read_outcomes(out)} == {"single-1", "single-2", "cot-1"}


def test_a_line_that_a_crash_cut_off_is_done_again(data: Path, tmp_path: Path) -> None:
    pool, out = farm(0, 1), tmp_path / "out.jsonl"
    setup = Setup(pool, ("single-1",), data=data, out=out)
    first = run(setup)
    out.write_bytes(out.read_bytes()[:-20])
    assert run(setup).outcomes == first.outcomes
    assert calls(pool)[0] == N + 1
    assert run(setup).outcomes == first.outcomes
    assert calls(pool)[0] == N + 1


def test_what_failed_for_no_fault_of_the_model_is_tried_again(data: Path, tmp_path: Path) -> None:
    down = FakeChat(answer=lambda _: ProviderError(401))
    setup = Setup(pool_of(down, down, language="any"), ("single-1", "plan-1"), data=data, limit=2)
    setup = replace(setup, out=tmp_path / "out.jsonl")
    assert not any(o.right for o in run(setup).outcomes)
    assert read_outcomes(tmp_path / "out.jsonl") == []
    right = run(replace(setup, pool=farm(1, 1))).outcomes  # the same but for being up
    assert [o.right for o in right] == [True] * 4


@pytest.mark.parametrize("change", ["quality", "tokens", "pool"])
def test_outcomes_of_other_settings_are_not_taken_for_these(
    data: Path, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "out.jsonl"
    setup = Setup(farm(0, 1), ("single-1",), data=data, out=out)
    run(setup)
    other = {
        "quality": replace(setup, quality=0.5),
        "tokens": replace(setup, max_tokens=9),
        "pool": replace(setup, pool=farm(0, 1, 2)),
    }[change]
    with pytest.raises(ConfigError, match="name another file"):
        run(other)


@pytest.mark.parametrize("content", ["hello\n", "[1]\n", '{"a": 1}\n', "\n"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "notes").write_text(content)
    with pytest.raises(ConfigError, match="no file of outcomes"):
        Record(tmp_path / "notes", [])
    assert (tmp_path / "notes").read_text() == content


def test_an_evaluation_teaches_a_later_one_on_other_queries(data: Path, tmp_path: Path) -> None:
    pool, out = farm(0, 1), tmp_path / "out.jsonl"
    run(Setup(pool, ("single-1", "single-2"), data=data, out=out))
    before = calls(pool)
    alone = Setup(pool, ("single-1", "single-2", "bow"), data=data, limit=1)
    with pytest.raises(ConfigError, match="at least two"):
        run(alone)
    with pytest.raises(ConfigError, match="nothing to learn"):
        run(replace(alone, fit_on=out, limit=N))
    assert calls(pool) == before
    done = run(replace(alone, fit_on=out)).outcomes
    assert [o.right for o in done if o.method == "bow"] == [True]  # the first was always wrong


# Money


def spent(pool: ModelPool) -> Decimal:
    """What the models were really asked."""
    return sum((spec.price.cost(used(spec.chat)) for spec in pool.members), Decimal(0))  # type: ignore[arg-type]


def used(chat: FakeChat) -> Usage:
    sent = sum(len(text.split()) for text in chat.prompts)
    said = sum(len(str(chat.answer(text)).split()) for text in chat.prompts)
    return Usage(input_tokens=sent, output_tokens=said)


METHODS = ("single-1", "single-2", "cascade", "plan-2", "oracle")


@pytest.mark.parametrize("usd", ["0.0001", "0.012", "0.02", "0.03"])
def test_no_more_is_spent_than_is_allowed_and_what_is_done_can_be_compared(
    data: Path, tmp_path: Path, usd: str
) -> None:
    pool = farm(0, 1)
    setup = Setup(pool, METHODS, data=data, max_usd=Decimal(usd), concurrency=2)
    done = run(replace(setup, out=tmp_path / "out.jsonl"))
    assert spent(pool) <= Decimal(usd)
    assert done.stopped
    by_method = {name: [o.query for o in done.outcomes if o.method == name] for name in METHODS}
    assert len(set(map(tuple, by_method.values()))) == 1
    assert len(by_method["oracle"]) < N
    free = run(Setup(pool, METHODS, data=data)).outcomes
    assert all(o in free for o in [*done.outcomes, *read_outcomes(tmp_path / "out.jsonl")])


def test_with_enough_money_nothing_is_different_and_shared_calls_are_paid_once(data: Path) -> None:
    pool = farm(0, 1)
    setup = Setup(pool, ("plan-1", "plan-2"), data=data)
    free = run(setup)
    bought, pool = spent(pool), farm(0, 1)
    capped = run(replace(setup, pool=pool, max_usd=Decimal(1)))
    assert not capped.stopped
    assert capped.outcomes == free.outcomes
    assert spent(pool) == bought < sum(o.net_usd for o in free.outcomes)


async def test_an_answer_that_the_budget_lowered_is_not_taken() -> None:
    weak, strong = farmer(0), farmer(1)
    with Ledger(":memory:", keep=False) as ledger:
        purse = Purse(ledger, Budget(usd=Decimal("0.002")), "test")
        lineup = Lineup(pool_of(weak, strong, language="any"), None, 0.9, {}, purse=purse)
        with pytest.raises(LimitExceeded, match="pool_budget"):
            await lineup.method("plan-2").answer(QUERY.format(1))
    assert len(weak.calls) == 1  # at once, for the strong one's worst case is above the budget
    assert not strong.calls


def test_the_reason_of_a_lowered_choice_is_the_allocators() -> None:
    context = AllocateContext(farm(0, 1), "q", budget_left=Decimal("0.002"))
    [choice] = within_budget([Choice("m2", "fixed")], single("q").subtasks, context, 1024)
    assert choice.reason == LOWERED


def outcome(method: str, query: str, benchmark: str = "a") -> Outcome:
    return Outcome(benchmark, method, query, True, Decimal(1), Decimal(1), 1, 0.0)


def test_what_not_all_methods_have_done_is_left_out() -> None:
    whole = [outcome("x", "1"), outcome("y", "1")]
    assert complete([*whole, outcome("x", "2"), outcome("x", "1", "b")], ["x", "y"]) == whole


# Prices


def test_an_estimate_asks_no_model_and_its_worst_case_is_never_passed(data: Path) -> None:
    pool = farm(0, 0, 1)
    setup = Setup(pool, tuple(chosen_methods("all,cot-1,tot-1", pool)), data=data)
    found = estimate(setup, ["gsm8k"])
    assert calls(pool) == [0, 0, 0]
    assert [line.method for line in found] == [m for m in setup.methods if not is_derived(m, pool)]
    paid = run(setup).outcomes
    for line in found:
        assert line.n == N
        assert 0 < line.expected_usd <= line.worst_usd
        assert sum(o.net_usd for o in paid if o.method == line.method) <= line.worst_usd


def test_an_expected_call_is_its_characters_and_a_reply_of_usual_length(data: Path) -> None:
    [line] = estimate(Setup(farm(0), ("single-1",), data=data, limit=1), ["gsm8k"])
    query = QUERY.format(1) + "\n\nEnd with a line `answer: …` that holds the number alone."
    assert line.expected_usd == pytest.approx((len(query) // 4 + 256) / 1e6)
    assert line.worst_usd == pytest.approx((len(query.encode()) + 16 + 1024) / 1e6)


def test_an_estimate_for_the_lab_keeps_to_its_context_and_worst_is_never_less(
    caplog: pytest.LogCaptureFixture,
) -> None:
    methods = ("router", "plan-9")
    told = logging.getLogger("transformers")
    told.addHandler(caplog.handler)  # it does not propagate
    lines = estimate(Setup("lab", methods, router="lab", limit=4), ["arith"])
    told.removeHandler(caplog.handler)
    assert [line.method for line in lines] == [*methods]
    for line in lines:
        assert 0 < line.expected_usd <= line.worst_usd
    assert not caplog.records  # transformers would warn of a prompt that passes the context


def test_a_small_context_bounds_the_tokens_of_an_expected_call(data: Path) -> None:
    pool = farm(0)
    small = pool.members[0].model_copy(update={"context_length": 16})
    pool = pool.model_copy(update={"members": (small,)})
    [line] = estimate(Setup(pool, ("single-1",), data=data, limit=1), ["gsm8k"])
    assert line.expected_usd == pytest.approx((16 + 8) / 1e6)
    assert line.expected_usd == line.worst_usd


# The command


@pytest.fixture
def pool_file(tmp_path: Path) -> Sequence[str]:
    """The options for a pool of two models, whose server says `Well met.` and `yes`."""
    with openai_server() as url:
        members = [
            {
                "name": name,
                "model": f"openai:{name}",
                "model_kwargs": {"base_url": url},
                "price": {"input_per_mtok": dollars, "output_per_mtok": dollars},
            }
            for name, dollars in (("small", 1), ("large", 10))
        ]
        path = tmp_path / "pool.yaml"
        path.write_text(yaml.safe_dump({"name": "served", "members": members}))
        yield ("eval", "--pool", str(path), "--benchmarks", "gsm8k")


def test_the_command_prices_runs_stops_and_goes_on(
    data: Path, tmp_path: Path, pool_file: Sequence[str]
) -> None:
    out, scores = tmp_path / "out.jsonl", tmp_path / "scores.json"
    command = [*pool_file, "--data", str(data), "--methods", "all", "--out", str(out)]
    priced = CliRunner().invoke(app, [*command, "--dry-run"])
    assert priced.exit_code == 0, priced.output
    assert "worst $" in priced.stdout
    assert not out.exists()
    stopped = CliRunner().invoke(app, [*command, "--max-usd", "0.02", "--concurrency", "1"])
    assert (stopped.exit_code, type(stopped.exception)) == (1, SystemExit), stopped.output
    assert "stopped: more could have passed $0.02" in stopped.stderr
    some = len(read_outcomes(out))
    assert some > 0
    done = CliRunner().invoke(app, [*command, "--scores", str(scores)])
    assert done.exit_code == 0, done.output
    assert len(read_outcomes(out)) == N * len(priced.stdout.split("gsm8k")[1:])
    saved = {line["family"]: line for line in json.loads(scores.read_text())}
    assert {"best-single", "threshold", "random:router", "oracle", "dot"} <= saved.keys()
    assert saved["oracle"]["pgr"] is None  # no gap between models that know nothing
    assert "CostSave" in done.stdout


def test_what_the_command_cannot_do_it_says(data: Path, pool_file: Sequence[str]) -> None:
    for options, message in (
        (["--methods", "tot-9"], "no method is called 'tot-9'"),
        (["--methods", "random:nobody"], "no method is called 'nobody'"),
        (["--max-usd", "-1"], "must be finite"),
        (["--benchmarks", "mmlu"], "no benchmark is called 'mmlu'"),
    ):
        done = CliRunner().invoke(app, [*pool_file, "--data", str(data), *options])
        assert (done.exit_code, type(done.exception)) == (2, SystemExit), done.output
        assert message in done.stderr
