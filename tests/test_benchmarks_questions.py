"""The questions of a benchmark are always the same ones, each of them once, and can be graded."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path

import pytest

from r2graph.benchmarks import NAMES, load
from r2graph.benchmarks.mathematics import champ_gold
from r2graph.errors import (
    BenchmarkFileError,
    ConfigError,
    MissingExtraError,
    SandboxUnavailable,
)
from r2graph.lab import benchmarks as lab
from r2graph.sandbox import require_sandbox

DATA = Path(__file__).parent / "data" / "benchmarks"
PUBLISHED = [name for name in NAMES if name not in lab.NAMES]
SIZES = {"champ": 10, "csqa": 4, "gsm8k": 5, "math": 5, "musique": 3, "musique-closed-book": 3}
SIZES |= {"p3": 5, "strategyqa": 3}
SIZES |= {name: 3 for name in PUBLISHED if name.startswith("scan")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_question_comes_once_and_has_a_form_to_answer_in(name: str) -> None:
    questions = load(name, data=DATA)
    assert len(questions) == SIZES[name]
    assert {question.benchmark for question in questions} == {name}
    assert len({question.id for question in questions}) == len(questions)
    assert len({question.query for question in questions}) == len(questions)
    assert all("answer: " in question.query and question.gold for question in questions)


@pytest.mark.parametrize("name", [*PUBLISHED, "arith"])
def test_fewer_questions_are_a_prefix_of_more(name: str) -> None:
    more = load(name, data=DATA, limit=4)
    for limit in (0, 1, 3):
        assert load(name, data=DATA, limit=limit) == more[:limit]


def test_the_order_is_not_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    lines = (DATA / "gsm8k" / "test.jsonl").read_text().splitlines()
    (tmp_path / "gsm8k" / "test.jsonl").write_text("\n".join(reversed(lines)))
    assert load("gsm8k", data=tmp_path) == load("gsm8k", data=DATA)


def test_at_most_200_questions_are_the_default(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    rows = [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(201)]
    (tmp_path / "gsm8k" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(load("gsm8k", data=tmp_path)) == 200
    assert len(load("gsm8k", data=tmp_path, limit=201)) == 201


@pytest.mark.parametrize("name", lab.NAMES)
def test_the_labs_questions_are_its_tasks(name: str) -> None:
    tasks = lab.tasks(name, 20)
    asked = [(question.query, question.gold) for question in load(name, limit=20)]
    assert asked == [(task.query, task.answer) for task in tasks]


def test_compressed_files_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    content = (DATA / "gsm8k" / "test.jsonl").read_bytes()
    (tmp_path / "gsm8k" / "test.jsonl.gz").write_bytes(gzip.compress(content))
    assert load("gsm8k", data=tmp_path) == load("gsm8k", data=DATA)


def test_puzzles_are_of_the_test_split_and_do_not_run_their_answer() -> None:
    found = {question.id for question in load("p3", data=DATA)}
    puzzles = json.loads((DATA / "p3" / "puzzles.json").read_text())
    assert {each["name"] for each in puzzles} - found == {"Quine:0", "Study_1:0"}


def test_musique_comes_with_its_paragraphs_and_its_closed_book_without() -> None:
    question = load("musique", data=DATA, limit=1)[0]
    [record] = [
        record
        for line in (DATA / "musique" / "excerpt_full.jsonl").read_text().splitlines()
        if (record := json.loads(line))["id"] == question.id
    ]
    assert all(each["paragraph_text"] in question.query for each in record["paragraphs"])
    assert all(len(each.query) < 300 for each in load("musique-closed-book", data=DATA))


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("239", ["239"]),
        ("No", ["No"]),
        ("2^(n-1)", ["2^(n-1)"]),
        ("C(10, 5), or equivalently 252", ["C(10, 5)", "252"]),
        ("5/14, or approximately 35.7%", ["5/14", "35.7%"]),
        ("0 is the only possible value", ["0"]),
        ("100 (i.e., all values)", ["100"]),
        ("The limit exists and is equal to (a+3b)/2", ["(a+3b)/2"]),
        ("2 inequalities", ["2"]),
        ("sqrt(3)/3, or equivalently 1/sqrt(3)", ["sqrt(3)/3", "1/sqrt(3)"]),
        ("No integer solutions", []),
        ("Monotonically increasing", []),
        ("x(x-1)(x-2)...(x-2022)", []),
    ],
)
def test_champs_answers_lose_the_words_around_them_and_sentences_are_left_out(
    answer: str, gold: list[str]
) -> None:
    assert champ_gold(answer) == gold


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkFileError, match="put the file there") as error:
        load(name, data=tmp_path)
    assert str(tmp_path / name.partition("-")[0]) in str(error.value)


@pytest.mark.parametrize("content", ["{", "[1]", '{"question": "?"}', '{"question": 1}', "\0\xff"])
def test_a_file_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_bytes(content.encode("latin-1"))
    with pytest.raises(BenchmarkFileError, match="files of gsm8k do not read"):
        load("gsm8k", data=tmp_path)


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"there are scan-simple, .*gsm8k"):
        load("gsm9k", data=DATA)


def test_what_is_not_on_the_hub_needs_a_directory() -> None:
    for name in ("champ", "scan", "p3", "musique-closed-book"):
        with pytest.raises(ConfigError, match=f"{name} is not on the hub: name a directory"):
            load(name)


def test_puzzles_are_not_asked_where_there_is_no_sandbox(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    require_sandbox.cache_clear()
    with pytest.raises(SandboxUnavailable):
        load("p3", data=DATA)


def test_formulas_are_not_asked_for_where_they_cannot_be_graded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    for name in ("math", "champ"):
        with pytest.raises(MissingExtraError, match=r"r2graph\[eval\]"):
            load(name, data=DATA)


def test_the_hub_wants_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"r2graph\[eval\]"):
        load("gsm8k")


README = (
    "---\nconfigs:\n- config_name: {}\n  data_files:\n  - split: {}\n    path: rows.jsonl\n---\n"
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory that `datasets` takes for the hub: it looks for an id there first."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(folder: Path, config: str, split: str, rows: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(README.format(config, split))
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_the_hubs_copy_of_a_question_is_the_same_question(hub: Path) -> None:
    lines = (DATA / "gsm8k" / "test.jsonl").read_text().splitlines()
    put(hub / "openai" / "gsm8k", "main", "test", [json.loads(line) for line in lines])
    assert load("gsm8k") == load("gsm8k", data=DATA)


def test_the_hubs_form_of_csqa_is_read(hub: Path) -> None:
    rows = []
    for line in (DATA / "csqa" / "dev_rand_split.jsonl").read_text().splitlines():
        record = json.loads(line)
        question = record.pop("question")
        choices = question["choices"]
        listed = {key: [each[key] for each in choices] for key in ("label", "text")}
        rows.append({**record, "question": question["stem"], "choices": listed})
    put(hub / "tau" / "commonsense_qa", "default", "validation", rows)
    assert load("csqa") == load("csqa", data=DATA)


def test_a_hub_without_the_data_set_is_a_typed_error(hub: Path) -> None:
    folder = hub / "ChilleD" / "StrategyQA"
    put(folder, "default", "test", [])
    shutil.move(folder / "rows.jsonl", folder / "moved")
    with pytest.raises(BenchmarkFileError, match="did not load from the Hugging Face hub"):
        load("strategyqa")
