"""The lab's three families: official data reproduced, splits kept apart, oracle plans that are
right.
"""

import gzip
import hashlib
import os
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from r2graph.errors import ConfigError, EmptyQueryError, UnsupportedQueryError
from r2graph.lab import arith, benchmarks, geo, language, scan
from r2graph.lab.task import Task, is_test
from r2graph.plan import fill, parse_text, render_text

# Of the sorted lines of the official files (github.com/brendenlake/SCAN, BSD).
OFFICIAL = {
    "tasks": "345bff3c25864652f326ba1960aa515d156b63f45067ea57268f71d7362a2440",
    "simple-test": "faa3707d325ccaf3d2d0a4f03d613a7985e3c7a3bcc09c832a21f7e251cd4509",
    "length-test": "45bb5e5f0e0678da016725d880ba4349267b93262762a2c66f9b51b04535a2ce",
}
EXCERPT = {
    "jump": "I_JUMP",
    "turn opposite left": "I_TURN_LEFT I_TURN_LEFT",
    "look around right after walk twice": "I_WALK I_WALK " + "I_TURN_RIGHT I_LOOK " * 4,
    "run opposite left and walk thrice": "I_TURN_LEFT I_TURN_LEFT I_RUN I_WALK I_WALK I_WALK",
}
FACTS = "7fedd289a1c45816af20d1e76e1378723d72c64e86d3c65f5b223dcd1ecb7c6e"


def lines(tasks: list[Task]) -> str:
    text = "\n".join(sorted(f"IN: {task.query} OUT: {task.answer}" for task in tasks))
    return hashlib.sha256(text.encode()).hexdigest()


def test_scan_generates_all_official_commands() -> None:
    tasks = [scan.task(command) for command in scan.commands()]
    assert len(tasks) == 20_910
    assert lines(tasks) == OFFICIAL["tasks"]


@pytest.mark.parametrize(("split", "size"), [("simple-test", 4_182), ("length-test", 3_920)])
def test_scan_splits_are_the_official_ones(split: str, size: int) -> None:
    tasks = list(scan.split(split))
    assert len(tasks) == size
    assert lines(tasks) == OFFICIAL[split]


@pytest.mark.parametrize(("command", "actions"), EXCERPT.items())
def test_scan_commands_have_the_official_actions(command: str, actions: str) -> None:
    assert scan.task(command).answer == actions.strip()


def test_scan_trains_on_nothing_that_either_split_tests() -> None:
    train = {task.query for task in scan.split("train")}
    assert len(train) == 13_576
    for split in ("simple-test", "length-test"):
        assert not train & {task.query for task in scan.split(split)}


@pytest.mark.parametrize("draw", [arith.draw, geo.draw], ids=["arith", "geo"])
def test_no_test_query_is_a_training_query(draw) -> None:  # type: ignore[no-untyped-def]
    name = draw.__module__.rsplit(".", 1)[-1]
    rng = Random(1)  # the seed of training/corpus.py
    train = {q for q in (draw(rng).query for _ in range(20_000)) if not is_test(q)}
    test = {task.query for task in benchmarks.tasks(name, 2_000)}
    assert all(map(is_test, test))
    assert not train & test


def test_arith_agrees_with_python() -> None:
    rng = Random(5)
    for task in (arith.draw(rng, deep=k % 4 == 0) for k in range(2_000)):
        assert str(eval(task.query)) == task.answer  # our own expression


def test_a_long_product_is_cut_or_left_whole() -> None:
    cut, whole = (arith.task("47 * 68 - 5", cut) for cut in ("*", ""))
    assert [s.text for s in cut.plan.subtasks] == [
        "47 * 60", "47 * 8", "{s1} + {s2}", "{s3} - 5"
    ]  # fmt: skip
    assert [s.text for s in whole.plan.subtasks] == ["47 * 68", "{s1} - 5"]
    assert whole.answer == cut.answer == "3191"
    right = benchmarks.right_outputs([cut])
    assert right == {
        "47 * 60": "2820", "47 * 8": "376", "2820 + 376": "3196", "3196 - 5": "3191",
        "47 * 68": "3196",
    }  # fmt: skip


def test_arith_has_a_two_by_two_product_in_one_expression_of_five() -> None:
    rng = Random(6)
    tasks = [arith.draw(rng) for _ in range(2_000)]
    share = sum(arith._largest_product(arith.parse(t.query)) == (2, 2) for t in tasks) / 2_000
    assert 0.17 < share < 0.23


@pytest.mark.parametrize("text", ["12 +", "( 3 + 4", "3 4", "x + 1", "7", "3 + + 4", "3 ** 4"])
def test_arith_refuses_what_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError, match="expression"):
        arith.parse(text)


def test_geo_facts_are_the_frozen_ones() -> None:
    path = Path(geo.__file__).parent / "data/geo_facts.json"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == FACTS
    assert "CC BY 4.0" in path.read_text()


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_oracle_plans_are_right_and_survive_the_plan_language(name: str) -> None:
    for task in benchmarks.tasks(name, 200):
        assert language.task(task.query) == task
        assert parse_text(render_text(task.plan)) == task.plan
        last = task.outputs[task.plan.subtasks[-1].id]
        answer = fill(task.plan.answer, task.outputs) if task.plan.answer else last
        assert benchmarks.grade(task, answer)
        assert not benchmarks.grade(task, answer + " I_JUMP")


def test_a_smaller_benchmark_is_a_prefix_of_a_larger_one() -> None:
    assert benchmarks.tasks("geo", 20) == benchmarks.tasks("geo", 50)[:20]
    with pytest.raises(ConfigError, match="scan-simple"):
        benchmarks.tasks("gsm8k")


def test_the_language_takes_what_people_type() -> None:
    assert language.check("(12+7)*5 - -3") == "( 12 + 7 ) * 5 - -3"
    query = "What currency is used in the country where São  Paulo is?"
    assert language.check(query) == query.replace("ã", "a").replace("  ", " ")


def test_the_language_says_what_it_is_to_anything_else() -> None:
    with pytest.raises(EmptyQueryError):
        language.check(" \n")
    for query in ("What is love?", "walk and", "jump and walk and run", "3 / 4"):
        with pytest.raises(UnsupportedQueryError, match="three families"):
            language.check(query)
    with pytest.raises(UnsupportedQueryError, match="3,000"):
        language.check("What is the capital of the country where Atlantis is?")


@pytest.mark.skipif("R2GRAPH_DATA" not in os.environ, reason="needs the official SCAN files")
def test_scan_equals_the_official_file() -> None:
    path = Path(os.environ["R2GRAPH_DATA"]) / "scan/tasks.txt.gz"
    with gzip.open(path, "rt") as file:
        official = dict(line[4:].strip().split(" OUT: ") for line in islice(file, None))
    assert official == {c: scan.task(c).answer for c in scan.commands()}
