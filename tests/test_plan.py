"""The plan language: `parse . render` is the identity, and anything else is a `PlanError`."""

import json
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from r2graph.errors import PlanError
from r2graph.plan import (
    MAX_PLAN_BYTES,
    MAX_PLAN_CHARS,
    MAX_REFERENCES,
    MAX_SUBTASKS,
    Plan,
    Subtask,
    fill,
    parse_json,
    parse_text,
    references,
    render_json,
    render_text,
    single,
)

WALK = "s1: walk around right thrice\ns2: jump opposite left twice\nanswer: {s1} {s2}"


def steps(*texts: str) -> dict[str, Any]:
    return {"subtasks": [{"id": f"s{n}", "text": text} for n, text in enumerate(texts, 1)]}


@st.composite
def plans(draw: st.DrawFn, text: st.SearchStrategy[str]) -> Plan:
    """Valid plans: words, references to earlier steps, explicit dependencies, perhaps an answer."""
    subtasks: list[Subtask] = []
    ids: list[str] = []
    for number in range(1, draw(st.integers(1, MAX_SUBTASKS)) + 1):
        earlier = st.sampled_from(ids) if ids else st.nothing()
        piece = text | earlier.map(lambda step: f"{{{step}}}")
        words = " ".join(draw(st.lists(piece, min_size=1, max_size=4)))
        assume(words.strip() and set(references(words)) <= set(ids))
        after = draw(st.lists(earlier, max_size=2)) if ids else []
        subtasks.append(Subtask(id=f"s{number}", text=words, depends_on=tuple(after)))
        ids.append(f"s{number}")
    used = draw(st.lists(st.sampled_from(ids), max_size=3))
    answer = " and ".join(f"{{{step}}}" for step in used) or None
    return Plan(subtasks=tuple(subtasks), answer=answer)


LINES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20)
ANYTHING = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(plans(LINES))
def test_parsing_a_rendered_plan_gives_it_back(plan: Plan) -> None:
    assert parse_text(render_text(plan)) == plan
    assert parse_text(render_text(plan).encode()) == plan


@given(plans(ANYTHING))
def test_the_json_form_gives_any_plan_back(plan: Plan) -> None:
    assert parse_json(render_json(plan)) == plan
    assert parse_json(json.dumps(render_json(plan))) == plan
    assert parse_json(json.dumps(render_json(plan), ensure_ascii=False).encode()) == plan


@given(plans(ANYTHING))
def test_the_text_form_gives_a_plan_back_or_refuses_to_hold_it(plan: Plan) -> None:
    try:
        text = render_text(plan)
    except PlanError:
        assert any(len(f"{step.text}.".splitlines()) > 1 for step in plan.subtasks)
    else:
        assert parse_text(text) == plan


@given(st.binary(max_size=200) | st.text(max_size=200))
@example(b"\xff")
@example("\ud800")
@example("s1: \ud800")
@example("answer: {s1}")
@example("s1: {s1}")
@example("[" * MAX_PLAN_BYTES)
@example("9" * 10_000)
def test_any_input_is_a_plan_or_a_plan_error(source: bytes | str) -> None:
    for parse in (parse_text, parse_json):
        try:
            plan = parse(source)
        except PlanError:
            continue
        assert 1 <= len(plan.subtasks) <= MAX_SUBTASKS


PIECES = st.sampled_from(
    [
        "s1",
        "s2",
        "s13",
        ": ",
        ":",
        " (after ",
        ")",
        ", ",
        "{s1}",
        "{s2}",
        "{",
        "\n",
        "answer: ",
        "a",
    ]
)


@given(st.lists(PIECES, max_size=30).map("".join))
def test_almost_plans_render_to_what_they_parse_to(source: str) -> None:
    try:
        plan = parse_text(source)
    except PlanError:
        return
    assert parse_text(render_text(plan)) == plan


JSONS = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["subtasks", "id", "text", "depends_on", "answer", "x"]), inner
        )
    ),
)


@given(JSONS)
def test_any_object_is_a_plan_or_a_plan_error(source: object) -> None:
    try:
        plan = parse_json(source)
    except PlanError:
        return
    assert parse_json(render_json(plan)) == plan


def test_references_make_dependencies() -> None:
    plan = parse_text("s1: a\ns2: b\ns3 (after s1): {s2} {s2}")
    assert [step.depends_on for step in plan.subtasks] == [(), (), ("s1", "s2")]


def test_dependencies_are_in_plan_order_beyond_the_ninth_step() -> None:
    texts = [f"step {n}" for n in range(1, 11)]
    plan = parse_json(steps(*texts, "{s10} {s2}"))
    assert plan.subtasks[10].depends_on == ("s2", "s10")


def test_a_dependency_that_a_reference_makes_is_not_said_twice() -> None:
    assert render_text(parse_text("s1: a\ns2 (after s1): {s1}")) == "s1: a\ns2: {s1}"


def test_a_single_plan_is_the_whole_query_even_over_several_lines() -> None:
    plan = single("first line\nsecond line")
    assert [step.text for step in plan.subtasks] == ["first line\nsecond line"]
    assert plan.answer is None
    with pytest.raises(PlanError, match="JSON"):
        render_text(plan)


def test_a_cyclic_plan_is_refused() -> None:
    cyclic = steps("use {s2}", "use {s3}", "use {s1}")
    with pytest.raises(PlanError, match="cyclic: s1 -> s2 -> s3 -> s1"):
        parse_json(cyclic)
    with pytest.raises(PlanError, match="cyclic: s1 -> s1"):
        parse_text("s1: {s1}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "at least 1"),
        ("walk", "line 1"),
        ("s1: a\n\ns2: b", "line 2"),
        ("s1:a", "line 1"),
        ("s1: ", "line 1"),
        ("s1: a\ns1: b", "s1 to s2, in order"),
        ("s2: a", "s1 to s1, in order"),
        ("s01: a", "pattern"),
        ("s1: {s2}\ns2: b", "s1 depends on s2, which comes later"),
        ("s1: {s7}", "unknown step s7"),
        ("s1 (after s7): a", "unknown step s7"),
        ("s1 (after s2,s3): a", "line 1"),
        ("s1: a\nanswer: {s2}", "unknown step s2"),
        ("s1: a\nanswer: 42", "refers to no step"),
        ("answer: {s1}\ns1: a", "line 1"),
        ("s1: a\nanswer: {s1}\nanswer: {s1}", "line 2"),
        ("\n".join(f"s{n}: a" for n in range(1, 14)), "at most 12"),
        ("\n".join(f"s{n}: a" for n in range(1, 99)), "more than 12"),
    ],
)
def test_a_text_that_is_not_a_plan_is_refused(text: str, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        parse_text(text)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "dictionary"),
        ([], "dictionary"),
        ({}, "subtasks Field required"),
        ({"subtasks": "s1"}, "subtasks"),
        ({"subtasks": [{"id": "s1"}]}, "subtasks.0.text"),
        ({"subtasks": [{"id": 1, "text": "a"}]}, "subtasks.0.id"),
        ({"subtasks": [{"id": "s1", "text": "\ud800"}]}, "subtasks.0.text"),
        ({"subtasks": [{"id": "s1", "text": "a", "model": "gpt"}]}, "unknown key"),
        (steps("a") | {"limits": {}}, "unknown key"),
        (steps(" \n"), "subtasks.0.text is blank"),
        (steps("a") | {"answer": ""}, "answer"),
    ],
)
def test_an_object_that_is_not_a_plan_is_refused(source: object, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        parse_json(source)


def test_a_plan_error_never_holds_the_text_of_the_plan() -> None:
    secret = "sk-canary"
    sources: list[object] = [
        steps(f"{secret} {{s2}}"),
        {"subtasks": [{"id": secret, "text": secret}]},
        {"subtasks": [{"id": "s1", "text": "a", secret: secret}]},
        {"subtasks": [{"id": "s1", "text": [secret]}], secret: 1},
        steps("a") | {"answer": secret},
        {"subtasks": [{"id": "s1", "text": "a", "depends_on": [secret]}]},
        f"{{{secret}",
    ]
    for source in sources:
        with pytest.raises(PlanError) as caught:
            parse_json(source)
        assert secret not in str(caught.value)
        assert caught.value.__suppress_context__
    with pytest.raises(PlanError) as caught:
        parse_text(f"s1: a\n{secret}")
    assert secret not in str(caught.value)


def test_sizes_are_bounded() -> None:
    with pytest.raises(PlanError, match="bytes"):
        parse_json(" " * (MAX_PLAN_BYTES + 1))
    with pytest.raises(PlanError, match="bytes"):
        parse_text(b"s1: a\n" * MAX_PLAN_BYTES)
    with pytest.raises(PlanError, match="at most 12"):
        parse_json({"subtasks": [{"id": "s1", "text": "a"}] * 1_000_000})
    with pytest.raises(PlanError, match="characters"):
        single("a" * (MAX_PLAN_CHARS + 1))
    with pytest.raises(PlanError, match="together"):
        parse_json(steps(*["a" * (MAX_PLAN_CHARS // 2)] * 3))
    with pytest.raises(PlanError, match=f"more than {MAX_REFERENCES} references"):
        parse_json(steps("a", "{s1}" * (MAX_REFERENCES + 1)))


@pytest.mark.parametrize("letter", ["a", "\x01", "é", "\N{GRINNING FACE}"])
def test_the_longest_valid_plan_can_be_parsed_in_any_encoding(letter: str) -> None:
    plan = single("|" + letter * (MAX_PLAN_CHARS - 2) + "|")
    assert parse_json(json.dumps(render_json(plan))) == plan
    assert parse_json(json.dumps(render_json(plan), ensure_ascii=False).encode()) == plan


def test_the_walk_example_of_the_docstring_reads_as_it_says() -> None:
    plan = parse_text(WALK)
    assert render_text(plan) == WALK
    assert render_json(plan) == {
        "subtasks": [
            {"id": "s1", "text": "walk around right thrice", "depends_on": []},
            {"id": "s2", "text": "jump opposite left twice", "depends_on": []},
        ],
        "answer": "{s1} {s2}",
    }


def test_references_are_found_once_and_in_order() -> None:
    assert references("{s2} {s10} {s2} {s} {x} s1 {{s3}}") == ["s2", "s10", "s3"]


def test_filling_in_is_a_single_pass_of_plain_substitution() -> None:
    outputs = {"s1": "{s2} {0} {x.__class__} \\1 \\frac{1}{2}", "s2": "two"}
    assert fill("<{s1}|{s2}>", outputs) == f"<{outputs['s1']}|two>"


def test_filling_in_a_missing_output_is_an_error() -> None:
    with pytest.raises(PlanError, match="s2"):
        fill("{s1} {s2}", {"s1": "one"})
