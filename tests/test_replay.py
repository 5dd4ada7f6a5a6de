"""Recorded outcomes: files become tables, splits keep questions whole, figures are right."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from r2graph.allocate import Allocator, CheapestFirst
from r2graph.cli import app
from r2graph.cli.replay import evaluate_replay
from r2graph.errors import ConfigError, TraceFileError
from r2graph.explore import ExploringAllocator
from r2graph.graph import create_r2_graph
from r2graph.replay.evaluate import evaluate
from r2graph.replay.importers import (
    drawn_steps,
    from_traces,
    llmrouter,
    load_replay,
    routellm_gsm8k,
)
from r2graph.replay.many_models import mixture
from r2graph.replay.off_policy import ips
from r2graph.replay.table import Replay
from r2graph.replay.two_models import apgr, quality_curve, random_share, strong_share
from r2graph.trace import Trace, trace, write_traces
from r2graph.verify import CallableVerifier
from tests.fakes import Planned, pool_of, scripted

DATA = Path(__file__).parent / "data" / "replay"


def table(texts: list[str], scores: Any, questions: list[str] | None = None) -> Replay:
    scores = np.array(scores, dtype=float)
    models = tuple(f"m{at}" for at in range(1, scores.shape[1] + 1))
    costs = np.tile(np.arange(1.0, scores.shape[1] + 1), (len(texts), 1))
    whole = tuple(questions or texts)
    return Replay(tuple(texts), whole, ("t",) * len(texts), models, scores, costs)


def traced(
    answers: list[str],
    right: bool | None = None,
    plan: str = "s1: walk",
    allocator: Allocator | None = None,
) -> Trace:
    """A run on two members, whose outputs are right if they say so."""
    graph = create_r2_graph(
        pool_of(*(scripted(answer) for answer in answers)),
        decomposer=Planned(plan),
        allocator=allocator,
        verifier=CallableVerifier(lambda attempt: attempt.output == "right"),
    )
    return trace(graph.invoke("walk"), right=right)


# importers


def test_routellms_answers_are_read_weak_model_first() -> None:
    replay = routellm_gsm8k(DATA)
    assert len(replay) == 60
    assert replay.models == ("mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview")
    assert replay.texts[0].startswith("Janet’s ducks")
    assert set(replay.scores.ravel()) == {0.0, 1.0}
    assert replay.scores[:, 0].mean() < replay.scores[:, 1].mean()
    assert replay.costs.sum(axis=0).tolist() == [0, 60]


def test_llmrouters_scores_are_read_cheapest_model_first_with_dollars() -> None:
    replay = llmrouter(DATA)
    assert replay.scores.shape == (40, 9)
    assert replay.models[0] == "gemma-2-9b-it"
    assert {"gsm8k", "commongen"} < set(replay.tasks)
    assert (np.diff(replay.costs, axis=1) >= 0).all()
    # 0.1 dollars a million tokens of four characters
    assert replay.costs[0, 0] == pytest.approx(len(replay.texts[0]) / 4 * 1e-7)


def test_a_file_may_be_gzipped_or_not(tmp_path: Path) -> None:
    plain = (DATA / "gsm8k_responses.csv").read_bytes()
    (tmp_path / "gsm8k_responses.csv.gz").write_bytes(gzip.compress(plain))
    assert routellm_gsm8k(tmp_path).sha256 == routellm_gsm8k(DATA).sha256


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("routellm-gsm8k", {}),
        ("routellm-gsm8k", {"gsm8k_responses.csv": "prompt,other\nSECRET,True\n"}),
        ("routellm-gsm8k", {"gsm8k_responses.csv": ""}),
        ("llmrouter", {"scores.jsonl": "SECRET", "prices_usd_per_mtok.json": "{}"}),
        (
            "llmrouter",
            {
                "scores.jsonl": json.dumps({"question": "SECRET", "task": "t", "scores": {"m": 2}}),
                "prices_usd_per_mtok.json": '{"m": {"input_price": 1}}',
            },
        ),
        (
            "llmrouter",
            {
                "scores.jsonl": json.dumps({"question": "SECRET", "task": "t", "scores": {"m": 1}}),
                "prices_usd_per_mtok.json": "{}",
            },
        ),
        ("nothing", {}),
    ],
)
def test_what_is_no_record_is_a_typed_error_without_its_text(
    name: str, files: dict[str, str], tmp_path: Path
) -> None:
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_replay(name, tmp_path)
    assert "SECRET" not in str(raised.value)


def test_traces_give_the_first_attempt_of_each_step_and_its_cost(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    two_steps = "s1: walk\ns2: run after {s1}"
    write_traces(file, [traced(["right"] * 2, plan=two_steps), traced(["wrong", "right"])])
    replay = from_traces([file, file])
    assert replay.texts == ("walk", "run after {s1}", "walk") * 2
    assert set(replay.questions) == {"walk"}
    assert replay.models == ("m1", "m2")
    assert replay.scores[:3, 0].tolist() == [1, 1, 0]
    assert (replay.costs[:, 0] > 0).all()


def test_an_attempt_that_came_of_a_failure_counts_only_for_a_member_never_tried_first(
    tmp_path: Path,
) -> None:
    file = tmp_path / "runs.jsonl"
    escalated = traced(["wrong", "right"])
    write_traces(file, [escalated])
    assert from_traces([file]).scores.tolist() == [[0, 1]]
    step = escalated.steps[0]
    direct = step.model_copy(update={"attempts": step.attempts[1:]})
    write_traces(file, [escalated, escalated.model_copy(update={"steps": (direct,)})])
    np.testing.assert_equal(from_traces([file]).scores, [[0, np.nan], [np.nan, 1]])


def test_a_graders_word_for_a_run_of_one_step_goes_before_the_checks(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    write_traces(file, [traced(["right", "right"], right=False)])
    assert from_traces([file]).scores[0, 0] == 0


def test_traces_that_nobody_has_judged_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    write_traces(file, [])
    with pytest.raises(ConfigError, match="no recorded outcomes"):
        from_traces([file])
    with pytest.raises(TraceFileError):
        from_traces([tmp_path / "nowhere.jsonl"])


def test_steps_that_were_drawn_are_a_log_for_off_policy_estimates(tmp_path: Path) -> None:
    runs = []
    for seed in range(60):
        allocator = ExploringAllocator(CheapestFirst(), epsilon=0.5, seed=seed)
        runs.append(traced(["wrong", "right"], allocator=allocator))
    write_traces(tmp_path / "runs.jsonl", [*runs, traced(["right", "right"])])
    log = drawn_steps([tmp_path / "runs.jsonl"])
    assert log.texts == ("walk",) * 60
    assert set(log.propensities) == {0.75, 0.25}
    assert (log.rewards == (log.chosen == 1)).all()
    always_m2 = ips(log.rewards, log.propensities, (log.chosen == 1).astype(float))
    assert always_m2.low < 1 < always_m2.high
    write_traces(tmp_path / "runs.jsonl", [traced(["right", "right"])])
    with pytest.raises(ConfigError, match="exploration"):
        drawn_steps([tmp_path / "runs.jsonl"])


# splits


def test_no_question_is_on_both_sides_of_a_split() -> None:
    texts = [f"What is {at}?" for at in range(30)] + [f"what  is {at}" for at in range(30)]
    replay = table(texts, np.zeros((60, 2)))
    tested: list[int] = []
    for train, test in replay.folds(5, seed=3):
        assert {row % 30 for row in train}.isdisjoint({row % 30 for row in test})
        tested += test.tolist()
    assert sorted(tested) == list(range(60))


def test_steps_of_one_query_stay_together() -> None:
    replay = table(list("abcdef"), np.zeros((6, 2)), questions=["x", "x", "y", "y", "z", "z"])
    for train, test in replay.folds(3, seed=0):
        assert len(train) == 4
        assert len({replay.questions[row] for row in test}) == 1


def test_more_folds_than_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 folds"):
        list(table(["a", "A!"], np.zeros((2, 2))).folds(5, 0))


def test_scores_outside_0_to_1_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 to 1"):
        table(["a"], [[0.0, 1.5]])


# figures

WEAK, STRONG = np.array([1.0, 0.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0])


def test_the_oracle_needs_a_strong_call_only_where_it_helps() -> None:
    curve = quality_curve(STRONG - WEAK, WEAK, STRONG)
    assert curve.tolist() == [0.5, 0.75, 1.0, 1.0, 0.75]
    assert strong_share(curve, 0.95) == 0.25
    assert strong_share(curve, 1.0) == 0.25
    assert apgr(curve) == pytest.approx((0 + 1 + 2 + 2 + 1) / 5)


def test_a_random_ranking_needs_what_it_needs_in_the_mean() -> None:
    random = np.random.default_rng(0)
    weak = (random.random(2000) < 0.6).astype(float)
    strong = (random.random(2000) < 0.9).astype(float)
    curves = [quality_curve(random.random(2000), weak, strong) for _ in range(50)]
    shares = [strong_share(curve) for curve in curves]
    assert np.mean(shares) == pytest.approx(random_share(weak, strong), abs=0.02)
    assert np.mean([apgr(curve) for curve in curves]) == pytest.approx(0.5, abs=0.01)


def test_a_mixture_is_the_best_that_two_models_give_at_a_cost() -> None:
    costs, scores = np.array([1.0, 2.0, 3.0]), np.array([0.2, 0.1, 0.6])
    assert mixture(costs, scores, 2.0) == pytest.approx(0.4)
    assert mixture(costs, scores, 9.0) == 0.6


def test_two_models_are_set_against_chance_words_and_oracle() -> None:
    """On questions whose last word says who can do them."""
    words = ["river", "mountain"]
    texts = [f"Question {at} of {at * 7 % 50} about a {words[at % 2]}" for at in range(100)]
    replay = table(texts, [[1.0 - at % 2, float(at % 10 > 0)] for at in range(100)])
    calls: list[None] = []
    result = evaluate(replay, repeats=2, progress=lambda: calls.append(None))
    assert len(calls) == 10
    assert result["oracle"]["strong_share_at_95"] == 0.36  # .5 + .36, of which .855 are needed
    assert result["random"]["strong_share_at_95"] == pytest.approx(0.355 / 0.4)
    assert result["strong_share_at_95"] <= 0.5
    low, high = result["apgr_interval"]
    assert low <= result["apgr"] <= high
    assert result["less_bag_of_words"]["apgr"] == pytest.approx(
        result["apgr"] - result["bag_of_words"]["apgr"]
    )
    json.dumps(result)


def test_many_models_are_set_against_the_best_single_one_at_its_cost() -> None:
    words, able = ["river", "mountain", "desert", "forest"], np.eye(3)[[0, 1, 2, 2]]
    texts = [f"Question {at} of {at * 7 % 50} about a {words[at % 4]}" for at in range(160)]
    result = evaluate(table(texts, able[[at % 4 for at in range(160)]]), repeats=1)
    assert result["router"]["score"] > 0.9
    assert result["best_single"] == {"score": 0.5, "cost": 3}
    gained = result["router_less_best_single"]
    assert gained["share_of_gap_to_oracle"]["value"] > 0.8
    assert gained["saving"]["value"] == pytest.approx(0.25, abs=0.05)
    qualities = [point["quality"] for point in result["by_quality"]]
    costs = [point["cost"] for point in result["by_quality"]]
    assert (qualities[0], qualities[-1]) == (0, 1)
    assert costs == sorted(costs)
    json.dumps(result)


def test_the_command_line_shows_and_saves_a_replay(tmp_path: Path) -> None:
    where = ["--data", str(DATA), "--json", str(tmp_path / "result.json")]
    said = CliRunner().invoke(app, ["eval", "--replay", "llmrouter", "--repeats", "1", *where])
    assert "best single" in said.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["replay"], result["n"]) == ("llmrouter", 40)
    with pytest.raises(ConfigError, match="--data"):
        evaluate_replay("llmrouter", None, None, repeats=1)


def test_a_replay_with_holes_is_not_evaluated() -> None:
    with pytest.raises(ConfigError, match="each model"):
        evaluate(table(["a", "b"], [[0.0, np.nan], [0.0, 1.0]]), repeats=1)
