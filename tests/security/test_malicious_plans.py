"""Whatever a model returns as a plan is a valid plan or a `PlanError`, and soon."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from r2graph.calls import flowing
from r2graph.decompose import DecomposeContext, PromptedDecomposer
from r2graph.errors import PlanError
from r2graph.graph import create_r2_graph
from r2graph.plan import (
    MAX_FAULTS,
    MAX_FILLED_CHARS,
    MAX_PLAN_BYTES,
    MAX_PLAN_CHARS,
    MAX_REFERENCES,
    MAX_SUBTASKS,
    Plan,
    parse_json,
    parse_text,
    references,
    render_json,
    render_text,
)
from r2graph.turn import FENCE_NOTE, STEP_INSTRUCTION
from tests.conftest import Figure
from tests.fakes import Planned, echo, pool_of, replay, reply

PROMISED_S = 0.1
NOISE = 10  # machines that run tests do other things too

Source = str | bytes
PLAN = parse_text("s1: a\ns2: b {s1}\ns3 (after s2): c\nanswer: {s2} {s3}")
CONTEXT = DecomposeContext(pool_of(echo()))


def prompted(source: Source) -> Plan:
    """As the decomposer reads a chat model's reply, with prose or a code fence around it."""
    text = source if isinstance(source, str) else source.decode(errors="surrogateescape")
    flow = PromptedDecomposer(single_below=0).decompose("q", CONTEXT)
    return replay(flowing(flow), reply(text))[0]


READERS: list[Callable[[Source], Plan]] = [parse_text, parse_json, prompted]


class Record:
    """How many readings gave a plan, how many a typed error, and how long the longest took."""

    def __init__(self) -> None:
        self.cases = self.plans = self.refused = 0
        self.longest_s = 0.0

    def read(self, source: Source) -> None:
        self.cases += 1
        for reader in READERS:
            began = time.process_time()
            try:
                plan = reader(source)
            except PlanError:
                self.refused += 1
            else:
                self.plans += 1
                check(plan)
            finally:
                self.longest_s = max(self.longest_s, time.process_time() - began)

    def report(self, figure: Figure) -> None:
        figure(
            f"malicious plans: {self.cases} sources x {len(READERS)} readers",
            f"{self.plans} valid, {self.refused} errors; longest {1000 * self.longest_s:.0f} ms",
        )
        assert self.plans + self.refused == self.cases * len(READERS)
        assert self.longest_s <= NOISE * PROMISED_S


def check(plan: Plan) -> None:
    """What holds of every plan that was accepted."""
    ids = [step.id for step in plan.subtasks]
    assert ids == [f"s{n}" for n in range(1, len(ids) + 1)]
    assert 1 <= len(ids) <= MAX_SUBTASKS
    for at, step in enumerate(plan.subtasks):
        assert set(references(step.text)) <= set(step.depends_on) <= set(ids[:at])
    texts = [step.text for step in plan.subtasks] + [plan.answer or ""]
    assert set(references(texts[-1])) <= set(ids)
    assert sum(map(len, texts)) <= MAX_PLAN_CHARS
    assert "\n".join(texts).encode()  # no lone surrogate is left
    assert parse_json(render_json(plan)) == plan


def plan_of(*texts: str, **more: Any) -> str:
    steps = [{"id": f"s{n}", "text": text} for n, text in enumerate(texts, 1)]
    return json.dumps({"subtasks": steps, **more})


def step(**fields: Any) -> str:
    return json.dumps({"subtasks": [{"id": "s1", "text": "a"} | fields]})


def filled_up(head: str, unit: str, tail: str, n_bytes: int = MAX_PLAN_BYTES) -> str:
    """`unit` over and over between head and tail, as often as the bound on bytes lets it in."""
    return head + unit * ((n_bytes - len(head) - len(tail)) // len(unit)) + tail


def nested() -> Iterator[Source]:
    for depth in (2, 100, 2_000, 100_000):
        yield "[" * depth
        yield "[" * depth + "]" * depth
        yield '{"subtasks":' * depth
        yield '{"a":' * depth + "0" + "}" * depth
        yield '{"subtasks": [{"id": "s1", "text": ' + "[" * depth + "]" * depth + "}]}"


def numbers() -> Iterator[Source]:
    huge = ["9" * 10, "9" * 4_300, "9" * 4_301, "9" * 1_000_000, "-" + "9" * 5_000]
    odd = ["1e999", "-1e999", "1." + "9" * 100_000, "NaN", "Infinity", "-Infinity", "-0", "01"]
    for number in huge + odd:
        yield number
        yield '{"subtasks": [{"id": ' + number + ', "text": "a"}]}'
        yield '{"subtasks": [{"id": "s1", "text": "a", "depends_on": [' + number + "]}]}"


def twice() -> Iterator[Source]:
    one = '{"id": "s1", "text": "a"}'
    yield '{"subtasks": [' + one + '], "subtasks": []}'
    yield '{"subtasks": [], "subtasks": [' + one + "]}"
    yield '{"subtasks": [{"id": "s1", "id": "s1", "text": "a"}]}'
    yield '{"subtasks": [{"id": "s1", "text": "harmless", "text": "harmful"}]}'
    yield '{"subtasks": [{"id": "s1", "text": "a", "t\\u0065xt": "b"}]}'
    yield '{"subtasks": [' + one + '], "answer": "{s1}", "answer": null}'
    yield '{"subtasks": [{"id": "s1", "text": "a", "depends_on": [], "depends_on": ["s1"]}]}'
    yield '{"subtasks": [' + one + '], "Subtasks": []}'


def characters() -> Iterator[Source]:
    odd = "\x00 \x01 \x1b[2J \x7f \x85 \u2028 \u200b \u202e \ufeff \ufffe \ud800 \udfff \U0010ffff"
    for character in odd.split(" "):
        yield f"s1: a{character}b"
        yield f"s1{character}: a"
        yield plan_of(f"a{character}b")
        yield json.dumps({"subtasks": [{"id": f"s1{character}", "text": "a"}]})
    yield from (
        b"\xff\xfe",
        b"s1: \xc3\x28",
        b"\x00" * 100,
        b"s1: a\xed\xa0\x80",
        b"\xef\xbb\xbf{}",
    )
    yield plan_of("\x00" * 50_000)


def many() -> Iterator[Source]:
    for n in (MAX_SUBTASKS, MAX_SUBTASKS + 1, 1_000, 10_000):
        yield plan_of(*["a"] * n)
        yield "\n".join(f"s{k}: a" for k in range(1, n + 1))
    yield plan_of(*["a"] * 1_000_000)
    yield "s1: a\n" * 1_000_000
    yield filled_up('{"subtasks": [', "0,", "0]}")
    yield filled_up('{"subtasks": [', '{"id":1},', "0]}")
    yield filled_up('{"subtasks": [{"id": "s1", "text": "a", "depends_on": [', "1,", "1]}]}")
    yield filled_up("[", "[],", "[]]")
    yield filled_up("[", "{},", "{}]")
    for unit in ("[],", '"",[],', '"\\"', '\\"', '"', '"[",'):
        yield filled_up('{"subtasks": [', unit, "0]}")
    yield "{" + ",".join(f'"{n:x}":0' for n in range(90_000)) + "}"
    keys = ",".join(f'"{n:x}":0' for n in range(90_000))
    yield '{"subtasks": [{"id": "s1", "text": "a",' + keys + "}]}"
    yield '{"subtasks": {' + keys + "}}"
    yield '{"subtasks": [{"id": "s1", "text": "a", "depends_on": {' + keys + "}}]}"


def long() -> Iterator[Source]:
    for size in (MAX_PLAN_CHARS, MAX_PLAN_CHARS + 1, MAX_PLAN_BYTES, MAX_PLAN_BYTES + 1):
        for unit in ("a", "\U0001f600"):
            yield "s1: " + unit * (size - 4)
            yield plan_of(unit * size)
    for unit in ("{s1}", "{s", "{", "s1: ", "s1 (after ", ", s1", " ", "\n", "\r\n", "\\", '"'):
        yield filled_up("s1: ", unit, "a")
        yield filled_up("s1 (after s1", unit, "): a")
        yield filled_up('{"subtasks": [{"id": "s1", "text": "', unit, '"}]}')
    yield filled_up('{"subtasks": [{"id": "s1", "text": "', "\\u0041", '"}]}')


def braces() -> Iterator[Source]:
    fields = [
        "{x.__class__}",
        "{s1.__class__.__mro__}",
        "{0}",
        "{}",
        "{s1!r}",
        "{s1:>99999999}",
        "{s1[0]}",
        "{{s1}}",
        "{{{s1}}}",
        r"\frac{1}{2}",
        "{s1",
        "s1}",
        "%(s1)s %n",
        "${s1} $(id)",
        "{% for x in y %}",
        "{{ 7*7 }}",
        "{s 1}",
        "{s-1}",
        "{S1}",
    ]
    for field in fields:
        yield f"s1: a\ns2: {field}"
        yield plan_of("a", field)
        yield plan_of("a", "b", answer=field)


def circles() -> Iterator[Source]:
    for n in (1, 2, 3, MAX_SUBTASKS):
        ring = [f"{{s{k % n + 1}}}" for k in range(1, n + 1)]
        yield plan_of(*ring)
        yield "\n".join(f"s{k}: {text}" for k, text in enumerate(ring, 1))
        yield "\n".join(f"s{k} (after s{k % n + 1}): a" for k in range(1, n + 1))
    for needed in ("s2", "s13", "s99", "s100", "s0", "s01", "s-1", "s" + "9" * 50_000):
        yield f"s1: {{{needed}}}"
        yield f"s1 (after {needed}): a"
        yield f"s1: a\nanswer: {{{needed}}}"
        yield step(depends_on=[needed])


def ids() -> Iterator[Source]:
    alike = "ѕ1 ｓ1 s１ s¹ s₁ s١ s۱ S1 s1\u200b \u200bs1 s1\u0301 ſ1 s1\n s1\x00 s01 s+1 s1.0 s1e0"
    for name in [*alike.split(" "), "", "s", "1", "s" * 100_000, "s" + "1" * 100_000, "__proto__"]:
        yield f"{name}: a"
        yield json.dumps({"subtasks": [{"id": name, "text": "a"}]}, ensure_ascii=False)
        yield f"s1: a\ns2: {{{name}}}"
    odd: list[Any] = [None, True, 1, 1.5, [], {}, ["s1"]]
    yield from (step(id=value) for value in odd)


def laughs() -> Iterator[Source]:
    for fold in (2, 10, MAX_REFERENCES, MAX_REFERENCES + 1, 10_000):
        yield plan_of("ha", *[f"{{s{k}}}" * fold for k in range(1, MAX_SUBTASKS)])
        yield plan_of("ha", answer="{s1}" * fold)


def dressed() -> Iterator[Source]:
    plan = json.dumps(render_json(PLAN))
    yaml = "subtasks:\n- id: s1\n  text: a"
    yield from (f"```json\n{plan}\n```", f"```\n{render_text(PLAN)}\n```", f"Sure! {plan} Bye}}")
    yield from (f"{plan}{plan}", f"{plan}\n```\n{plan}", "{" * 1_000 + plan, plan + "}" * 1_000)
    yield from (yaml, f"```yaml\n{yaml}\n```", "!!python/object/apply:os.system ['id']", "&a [*a]")
    yield from ("<plan><s1>a</s1></plan>", "# a\n- b", plan.replace('"', "'"), json.dumps(plan))
    yield from (plan[:-1], plan[1:], f"/* */ {plan}", plan.replace("null", "undefined"), "null")


def grabs() -> Iterator[Source]:
    for key in ("limits", "pool", "prices", "budget_usd", "verifier", "allocation", "__class__"):
        yield plan_of("a", **{key: {"max_calls": 10**9}})
        yield step(**{key: "m9"})
    kinds: list[Any] = [None, True, 0, "s1", [], {}, [[]], {"0": {"id": "s1", "text": "a"}}]
    for kind in kinds:
        yield json.dumps({"subtasks": kind})
        yield json.dumps(kind)
        yield step(text=kind)
        yield step(depends_on=kind)
        yield plan_of("a", answer=kind)


FAMILIES = [
    nested,
    numbers,
    twice,
    characters,
    many,
    long,
    braces,
    circles,
    ids,
    laughs,
    dressed,
    grabs,
]


def payloads() -> list[Source]:
    return list(dict.fromkeys(source for family in FAMILIES for source in family()))


def test_a_malicious_plan_is_a_valid_plan_or_a_typed_error_and_soon(figure: Figure) -> None:
    record = Record()
    for source in payloads():
        record.read(source)
    assert record.cases >= 200
    assert record.plans > 20  # many are harmless: what looks odd is not refused for its looks
    record.report(figure)


TOKENS = [
    "s1",
    "{s2}",
    ": ",
    "answer: ",
    " (after s1)",
    "\n",
    '"',
    "\\",
    "{",
    "}",
    "]",
    ",",
    "\x00",
]


def mutated(draw: Random) -> Source:
    """A valid plan with some things wrong, or plain noise."""
    texts = [f"t{{s{draw.randint(1, k)}}}" if k else "t" for k in range(draw.randint(1, 6))]
    plan = parse_json(plan_of(*texts))
    if draw.random() < 0.1:
        return draw.randbytes(draw.randint(0, 500))
    source = render_text(plan) if draw.random() < 0.5 else json.dumps(render_json(plan))
    for _ in range(draw.randint(0, 4)):
        at, to = sorted(draw.randrange(len(source) + 1) for _ in range(2))
        change = [
            source[:at] + source[to:],
            source[:to] + source[at:],
            source[:at] + draw.choice(TOKENS) + source[at:],
            source[:at]
            + chr(draw.choice([draw.randrange(128), draw.randrange(0x11000)]))
            + source[at:],
            source[:at] + source[at:to] * draw.randint(2, 50) + source[to:],
        ]
        source = draw.choice(change)
    if draw.random() < 0.3:
        noisy = bytearray(source.encode(errors="replace"))
        for _ in range(draw.randint(1, 3) if noisy else 0):
            noisy[draw.randrange(len(noisy))] = draw.randrange(256)
        return bytes(noisy)
    return source


@pytest.mark.parametrize("n", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_plan_with_faults_is_a_valid_plan_or_a_typed_error_and_soon(
    n: int, figure: Figure
) -> None:
    record, draw = Record(), Random(n)
    for _ in range(n):
        record.read(mutated(draw))
    assert min(record.plans, record.refused) > n / 10
    record.report(figure)


# Controls: without our bounds the same sources get through


class LooseSubtask(BaseModel):
    id: str
    text: str


class LoosePlan(BaseModel):
    subtasks: list[LooseSubtask]


def test_pydantic_alone_takes_a_plan_of_any_size() -> None:
    """The 41 MB plan of a million subtasks, at a twentieth of its size."""
    huge = plan_of(*["a"] * 50_000)
    assert len(LoosePlan.model_validate_json(huge).subtasks) == 50_000
    with pytest.raises(PlanError, match="bytes"):
        parse_json(huge)


def test_pydantic_alone_lists_every_fault_of_a_plan() -> None:
    """Half a million faults fit into a mebibyte, and listing them took two seconds."""
    bad = {"subtasks": [0] * 1_000}
    with pytest.raises(ValidationError) as loose:
        LoosePlan.model_validate(bad)
    with pytest.raises(ValidationError) as ours:
        Plan.model_validate(bad)
    # Ours are the first bad step and, as validation ends there, that no step is left.
    assert (loose.value.error_count(), ours.value.error_count()) == (1_000, 2)
    with pytest.raises(PlanError, match=f"more than {MAX_FAULTS} faults"):
        parse_json(dict.fromkeys(map(str, range(1_000)), 0))


def test_json_alone_takes_the_last_of_two_texts() -> None:
    said_twice = '{"subtasks": [{"id": "s1", "text": "harmless", "text": "harmful"}]}'
    assert parse_json(json.loads(said_twice)).subtasks[0].text == "harmful"
    with pytest.raises(PlanError, match="a key twice"):
        parse_json(said_twice)


@pytest.mark.parametrize("language", ["test", "any"])
def test_a_prompt_cannot_grow_without_bound_as_outputs_repeat_each_other(
    language: str, figure: Figure
) -> None:
    """A billion laughs: each step repeats the one before ten times, on a model that copies."""
    fold = 10
    plan = "\n".join(
        ["s1: ha", *[f"s{k + 1}: " + f"{{s{k}}}" * fold for k in range(1, MAX_SUBTASKS)]]
    )
    copier = echo()
    pool = pool_of(copier, language=language)
    graph = create_r2_graph(pool, decomposer=Planned(plan), verifier=None)
    with pytest.raises(PlanError, match=f"more than {MAX_FILLED_CHARS} characters") as caught:
        graph.invoke("q")
    longest = max(map(len, copier.prompts))
    unbounded = len("ha") * fold ** (MAX_SUBTASKS - 1)
    figure(f"longest prompt, {language}; unbounded", f"{longest}; more than {unbounded}")
    note = len(STEP_INSTRUCTION + FENCE_NOTE) + fold * len("<s12-01234567>\n\n</s12-01234567>")
    assert longest <= MAX_FILLED_CHARS + note < unbounded
    assert caught.value.cost_usd is not None
