"""Recorded decompositions: what people wrote down becomes plans, or is dropped and counted."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from r2graph.decompose import PLAN_INSTRUCTIONS
from r2graph.plan import Plan, parse_json, parse_text, references, render_text
from training.decompositions import (
    SOURCES,
    Dropped,
    Imported,
    asked,
    imported,
    plan_of,
    records_of,
    split_of,
    write,
)

EXCERPTS = Path(__file__).parent / "data" / "decompositions"
FULL = Path(__file__).parents[2] / "shared" / "data"
PARSERS = {"text": parse_text, "json": parse_json}


def found(name: str, data: Path = EXCERPTS) -> list[Imported | Dropped]:
    pattern, importer = SOURCES[name]
    return list(imported(records_of(data, pattern), importer, set()))


def plans(data: Path = EXCERPTS) -> dict[str, Plan]:
    every = [item for name in SOURCES for item in found(name, data)]
    return {item.query: item.plan for item in every if isinstance(item, Imported)}


def rows(out: Path, form: str = "text", split: str = "all", data: Path = EXCERPTS) -> list[Any]:
    write(data, SOURCES, out, form, split)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("name", "number", "text"),
    [
        (
            "strategyqa",
            0,
            "s1: How many kids did Julius Caesar have?\n"
            "s2: How many kids did Genghis Khan have?\n"
            "s3: Is {s2} greater than {s1}?",
        ),
        (
            "gsm8k",
            1,
            "s1: Problem: A robe takes 2 bolts of blue fiber and half that much white fiber. How "
            "many bolts in total does it take? Question: How many bolts of white fiber does it "
            "take?\n"
            "s2: Problem: A robe takes 2 bolts of blue fiber and half that much white fiber. How "
            "many bolts in total does it take? Question: How many bolts of white fiber does it "
            "take? Answer: {s1} Question: How many bolts in total does it take?",
        ),
        (
            "musique",
            0,
            "s1: Which administrative entity is Van Hook Township in?\n"
            "s2: What is the capital of {s1}?",
        ),
        (
            "musique",
            3,
            "s1: What is Jacoby Shaddix a member of?\n"
            "s2: What city was {s1} formed in?\n"
            "s3: In what place did Alexander Golitzen die?\n"
            "s4: In the top five largest urban areas in {s2} , where does {s3} rank?",
        ),
    ],
)
def test_a_record_gives_the_plan_that_a_reader_would_write(
    name: str, number: int, text: str
) -> None:
    item = found(name)[number]
    assert isinstance(item, Imported)
    assert render_text(item.plan) == text


@pytest.mark.parametrize(
    ("notation", "question"),
    [
        ("#1 >> spouse", "Who is the spouse of #1?"),
        ("#2 >> shares border with", "What does #2 share a border with?"),
        ("The Miami Hurricane >> owned by", "What is The Miami Hurricane owned by?"),
        ("Amy McKenzie >> place of birth", "What is the place of birth of Amy McKenzie?"),
        ("{x} >> crosses", "What does {x} cross?"),
        ("who played king #1", "who played king #1"),
    ],
)
def test_a_relation_is_asked_as_a_question(notation: str, question: str) -> None:
    assert asked(notation) == question


@pytest.mark.parametrize("form", ["text", "json"])
def test_every_completion_parses_back_to_its_plan(form: str, tmp_path: Path) -> None:
    parsed = [PARSERS[form](row["completion"][0]["content"]) for row in rows(tmp_path / "f", form)]
    assert parsed == list(plans().values())


def test_every_reference_of_a_record_is_one_of_its_plan() -> None:
    for record, item in zip(records_of(EXCERPTS, "strategyqa/*"), found("strategyqa"), strict=True):
        assert isinstance(item, Imported)
        for step, text in zip(item.plan.subtasks, record["decomposition"], strict=True):
            assert [f"#{used[1:]}" for used in references(step.text)] == [
                word.strip("?") for word in text.split() if word.startswith("#")
            ]


def test_a_step_of_gsm8k_holds_the_problem_and_every_earlier_result() -> None:
    for item in found("gsm8k"):
        if isinstance(item, Imported):
            for step in item.plan.subtasks:
                assert " ".join(item.query.split()) in step.text
            for step, later in pairwise(item.plan.subtasks):
                assert later.depends_on == (*step.depends_on, step.id)


def test_a_prompt_is_what_the_deployed_decomposer_sends(tmp_path: Path) -> None:
    query = "Do the anchors on Rede Globo speak Chinese?"
    (text,) = rows(tmp_path / "text")[3]["prompt"]
    assert text == {"role": "user", "content": f"plan: {query}"}
    system, user = rows(tmp_path / "json", "json")[3]["prompt"]
    assert system["role"] == "system"
    assert system["content"].startswith(PLAN_INSTRUCTIONS)
    assert user["role"] == "user"
    assert query in user["content"]


def strategyqa(*steps: str) -> dict[str, Any]:
    return {"question": "Is it?", "decomposition": steps}


def gsm8k(*lines: str) -> dict[str, Any]:
    return {"question": "How many?", "answer": "\n".join([*lines, "#### 2"])}


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("strategyqa", strategyqa("Is #2?", "Is #1?"), "cyclic"),
        ("strategyqa", strategyqa("Is #1?"), "cyclic"),
        ("strategyqa", strategyqa("Is #2?", "What?"), "a reference to a later step"),
        ("strategyqa", strategyqa("Is #7?"), "a reference to an unknown step"),
        ("strategyqa", strategyqa("Is #0?"), "a reference to an unknown step"),
        ("strategyqa", strategyqa("Is #100?"), "a reference to an unknown step"),
        ("strategyqa", strategyqa("What?", "Is #!?"), "a # names no step"),
        ("strategyqa", strategyqa(*["What?"] * 13), "more than 12 steps"),
        ("strategyqa", strategyqa(), "no steps"),
        ("strategyqa", {"question": "Is it?"}, "no decomposition"),
        ("musique", {"question": "Is it?"}, "no question_decomposition"),
        ("gsm8k", gsm8k("What? ** 1", "what? ** 2"), "a sub-question is asked twice"),
        ("gsm8k", gsm8k("1 + 1 = 2"), "a line has no sub-question"),
        ("gsm8k", gsm8k(), "no steps"),
    ],
)
def test_what_makes_no_plan_is_dropped_under_its_reason(
    name: str, record: dict[str, Any], reason: str
) -> None:
    _, importer = SOURCES[name]
    assert list(imported([record], importer, set())) == [Dropped(reason)]


def test_a_query_is_kept_once_across_sources() -> None:
    seen: set[str] = set()
    (first,) = imported([strategyqa("What?")], SOURCES["strategyqa"][1], seen)
    (second,) = imported(
        [gsm8k("What? ** 2") | {"question": " is  IT? "}], SOURCES["gsm8k"][1], seen
    )
    assert first == Imported("Is it?", plan_of(["What?"]))
    assert second == Dropped("a query seen before")


def test_each_source_is_reported_on_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(tmp_path / "f")
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "strategyqa: 4 records, 4 kept, 2.75 steps a plan",
        "gsm8k: 4 records, 3 kept, 1 dropped: a sub-question is asked twice, 2.00 steps a plan",
        "musique: 4 records, 4 kept, 2.75 steps a plan",
    ]
    assert said.err == "gsm8k: record 4 dropped: a sub-question is asked twice\n"


def test_the_same_files_give_the_same_rows(tmp_path: Path) -> None:
    rows(tmp_path / "first")
    rows(tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_query_is_in_one_split_whatever_its_case_and_white_space() -> None:
    splits = [split_of(f"Is it {number}?") for number in range(2000)]
    assert splits == [split_of(f" is  IT {number}? ") for number in range(2000)]
    assert 70 <= splits.count("validation") <= 130


def test_the_splits_together_are_all_rows(tmp_path: Path) -> None:
    many = tmp_path / "strategyqa"
    many.mkdir()
    records = [strategyqa("What?") | {"question": f"Is it {number}?"} for number in range(100)]
    (many / "records.json").write_text(json.dumps(records))
    files = {}
    for split in ("train", "validation", "all"):
        write(tmp_path, ["strategyqa"], tmp_path / split, "text", split)
        files[split] = set((tmp_path / split).read_text().splitlines())
    assert files["train"]
    assert files["validation"]
    assert not files["train"] & files["validation"]
    assert files["train"] | files["validation"] == files["all"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_datasets_loads_the_file(form: str, tmp_path: Path) -> None:
    from datasets import load_dataset

    written = rows(tmp_path / "rows.jsonl", form)
    file, cache = str(tmp_path / "rows.jsonl"), str(tmp_path / "cache")
    loaded = load_dataset("json", data_files=file, split="train", cache_dir=cache)
    assert loaded.to_list() == written


def test_a_source_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"strategyqa/\*\.json"):
        rows(tmp_path / "f", data=tmp_path)


@pytest.mark.skipif(not FULL.exists(), reason="needs the full files, which are not distributed")
@pytest.mark.parametrize(
    ("name", "records", "kept"),
    [("strategyqa", 2290, 2288), ("gsm8k", 1319, 1082), ("musique", 200, 200)],
)
def test_most_of_the_full_files_is_kept(name: str, records: int, kept: int) -> None:
    items = found(name, FULL)
    assert len(items) == records
    assert sum(isinstance(item, Imported) for item in items) == kept


@pytest.mark.skipif(not FULL.exists(), reason="needs the full files, which are not distributed")
def test_every_plan_of_the_full_files_has_a_text_form() -> None:
    for plan in plans(FULL).values():
        assert parse_text(render_text(plan)) == plan
