"""The baselines of the literature, on scripted models that follow instructions."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import ChatResult

from r2graph.allocate import ALLOCATE_INSTRUCTIONS
from r2graph.benchmarks import load
from r2graph.decompose import PLAN_INSTRUCTIONS
from r2graph.errors import ConfigError, NeedsInstructionsError
from r2graph.evaluation.baselines import SELF_CHECK, THOUGHT, VOTE
from r2graph.evaluation.lineup import Lineup, all_methods, chosen_methods, is_derived
from r2graph.evaluation.methods import STEP_BY_STEP
from r2graph.evaluation.run import evaluate
from r2graph.evaluation.setup import Setup
from r2graph.pool import ModelPool
from r2graph.verify import JUDGE_INSTRUCTIONS
from tests.fakes import FakeChat, ProviderError, pool_of

CHOICE = ALLOCATE_INSTRUCTIONS.splitlines()[0]
CHECKS = (SELF_CHECK, JUDGE_INSTRUCTIONS)
RULES = (*CHECKS, PLAN_INSTRUCTIONS, CHOICE)


class WholeChat(FakeChat):
    """Answers from all the messages of a request, as one text."""

    def _result(self, messages: list[BaseMessage], options: dict[str, Any]) -> ChatResult:
        return super()._result([HumanMessage("\n".join(m.text for m in messages))], options)


PLAN = {"subtasks": [{"id": "s1", "text": "easy part"}, {"id": "s2", "text": "QUERY, from {s1}"}]}


def instructed(says: Callable[[str], str | None], **options: Any) -> WholeChat:
    """A model that plans in two steps, sends them to 1 and 2, is never sure, and votes for 2.

    What it says to a task is up to `says`; a task it does not know it answers with `unknown`.
    """

    def answer(text: str) -> str | Exception:
        if PLAN_INSTRUCTIONS in text:
            query = text.rpartition("<task>")[2].partition("</task>")[0].strip()
            return json.dumps(PLAN | {"answer": None}).replace("QUERY", json.dumps(query)[1:-1])
        if CHOICE in text:
            return " ".join(["1", "2"][: text.count("</s")])
        if text.startswith(VOTE):
            return "way 2"
        if any(check in text for check in CHECKS):
            return "no"
        if text.startswith(THOUGHT):
            return "differently" if "<way>" in text else "somehow"
        return says(text) or "unknown"

    return WholeChat(answer=answer, **options)


def lineup(*chats: FakeChat, **more: Any) -> Lineup:
    return Lineup(pool_of(*chats, language="any"), None, 0.9, {}, **more)


def billed(pool: ModelPool, *, overhead: bool) -> Decimal:
    """What the chats were asked and said, by their prices; deliberation counts if it should."""
    total = Decimal(0)
    for spec in pool.members:
        chat = spec.chat
        assert isinstance(chat, FakeChat)
        for text in chat.prompts:
            if overhead or not any(rule in text for rule in RULES):
                words = len(text.split()) + len(str(chat.answer(text)).split())
                total += spec.price.input_per_mtok * words
    return total.scaleb(-6)


SUM = "What is 40 + 2? End with a line `answer: …` that holds the number alone."


def knows(right: str) -> Callable[[str], str | None]:
    return lambda text: f"I see.\nanswer: {right}" if SUM in text else None


async def test_a_chain_of_thought_is_asked_for_in_words() -> None:
    chats = instructed(knows("42")), instructed(knows("43"))
    said = await lineup(*chats).method("cot-1").answer(SUM)
    assert chats[0].prompts == [SUM + STEP_BY_STEP]
    assert not chats[1].prompts
    assert said.text == "I see.\nanswer: 42"


async def test_a_tree_of_thoughts_continues_the_thought_that_was_voted_for() -> None:
    chat = instructed(lambda text: "answer: 42" if "<way>differently</way>" in text else None)
    said = await lineup(instructed(knows("1")), chat).method("tot-strongest").answer(SUM)
    assert (said.text, said.calls) == ("answer: 42", 4)
    first, second, vote, last = chat.prompts
    assert "somehow" not in first
    assert "<way>somehow</way>" in second
    assert "<way-1>somehow</way-1>\n<way-2>differently</way-2>" in vote
    assert last.startswith(SUM)


async def test_a_cascade_climbs_until_a_model_is_sure_and_asks_the_last_one_nothing() -> None:
    sure = instructed(knows("42"), logprob=-0.01)
    chats = [instructed(knows("1")), sure, instructed(knows("3"))]
    said = await lineup(*chats).method("cascade").answer(SUM)
    assert said.text == "I see.\nanswer: 42"
    assert [len(chat.prompts) for chat in chats] == [2, 1, 0]  # the first doubts itself
    unsure = [instructed(knows(str(k)), logprob=-1.0) for k in range(3)]
    assert (await lineup(*unsure).method("cascade").answer(SUM)).text == "I see.\nanswer: 2"
    assert [len(chat.prompts) for chat in unsure] == [2, 2, 1]


async def test_data_shunt_chooses_between_the_ends_of_the_pool() -> None:
    chats = [instructed(knows(str(k))) for k in range(3)]
    said = await lineup(*chats).method("datashunt").answer(SUM)
    assert said.text == "I see.\nanswer: 2"
    assert [len(chat.prompts) for chat in chats] == [2, 0, 1]


async def test_a_division_of_thoughts_sends_each_step_where_its_difficulty_asks_for() -> None:
    chats = [instructed(knows(str(k))) for k in range(3)]
    said = await lineup(*chats).method("dot").answer(SUM)
    planned, chosen, hard = chats[2].prompts
    assert PLAN_INSTRUCTIONS in planned
    assert CHOICE in chosen
    assert SUM in hard
    [easy] = chats[0].prompts
    assert "easy part" in easy
    assert not chats[1].prompts
    assert said.calls == 4


METHODS = ["single-2", "cot-1", "tot-2", "datashunt", "cascade", "dot", "plan-1", "random"]


@pytest.mark.parametrize("name", [*METHODS, "cheapest-first", "router"])
async def test_each_method_is_billed_for_all_that_its_models_were_asked(name: str) -> None:
    used = lineup(*(instructed(knows("42")) for _ in range(3)))
    said = await used.method(name).answer(SUM)
    assert said.net_usd == billed(used.pool, overhead=True) > 0
    assert said.pool_usd == billed(used.pool, overhead=False)
    assert said.calls == sum(len(spec.chat.calls) for spec in used.pool.members)


@pytest.mark.parametrize("name", METHODS)
async def test_models_that_are_down_are_a_wrong_answer(name: str) -> None:
    down = [FakeChat(answer=lambda _: ProviderError(401)) for _ in range(2)]
    said = await lineup(*down).method(name).answer(SUM)
    assert (said.text or "", said.net_usd) == ("", 0)


@pytest.mark.parametrize("name", ["tot-1", "dot"])
def test_what_prompts_models_is_refused_where_they_know_their_own_language_only(name: str) -> None:
    pool = pool_of(FakeChat(answer=str), FakeChat(answer=str), language="lab")
    with pytest.raises(NeedsInstructionsError, match="follow instructions"):
        Lineup(pool, None, 0.9, {}).method(name)
    assert not {"tot-strongest", "dot", "knn", "random:router"} & {*all_methods(pool)}


async def test_a_trained_chain_of_thought_is_asked_for_as_in_training() -> None:
    chat = FakeChat(answer=lambda text: f"s1: x\nanswer: {text}")
    pool = pool_of(chat, chat, language="lab")
    said = await Lineup(pool, None, 0.9, {}).method("cot-1").answer("walk")
    assert said.text == "think: walk"


def test_all_has_what_it_hangs_on_before_it() -> None:
    pool = pool_of(*(FakeChat(answer=str) for _ in range(3)), language="any")
    names = all_methods(pool)
    assert chosen_methods("all", pool) == names
    assert [n for n in names if is_derived(n, pool)] == [
        *("knn", "bow", "threshold", "best-single", "random:router", "oracle")
    ]
    singles = ["single-1", "single-2", "single-3"]
    assert chosen_methods("random:dot,single-2", pool) == [
        *("single-1", "single-3", "dot", "random:dot", "single-2")
    ]
    assert chosen_methods("oracle", pool) == [*singles, "oracle"]
    assert chosen_methods("threshold@all", pool)[3:5] == ["threshold@0.1", "threshold@0.2"]


# Every benchmark kind


def write(path: Path, *records: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Benchmarks of two questions, written for this test in the formats of their authors."""
    folder = tmp_path_factory.mktemp("data")
    write(
        folder / "gsm8k" / "test.jsonl",
        *(
            {"question": f"Ann has {n} hens and buys one. How many now?", "answer": f"#### {n + 1}"}
            for n in (2, 3)
        ),
    )
    write(
        folder / "csqa" / "dev_rand_split.jsonl",
        *(
            {
                "id": name,
                "answerKey": "A",
                "question": {
                    "stem": f"Where does a {name} live?",
                    "choices": [{"label": "A", "text": "sea"}, {"label": "B", "text": "desk"}],
                },
            }
            for name in ("whale", "squid")
        ),
    )
    questions = [{"qid": n, "question": f"Is {n} even?", "answer": n == "2"} for n in ("1", "2")]
    (folder / "strategyqa").mkdir()
    (folder / "strategyqa" / "strategyqa_train.json").write_text(json.dumps(questions))
    write(
        folder / "math" / "test.jsonl",
        {"problem": "Halve $x$.", "solution": r"It is $\boxed{\frac{x}{2}}$."},
        {"problem": "Double $x$.", "solution": r"It is $\boxed{2x}$."},
    )
    (folder / "scan").mkdir()
    (folder / "scan" / "tasks_test_simple.txt").write_text(
        "IN: walk OUT: I_WALK\nIN: jump twice OUT: I_JUMP I_JUMP\n"
    )
    return folder


RIGHT = {
    "2 hens": "3",
    "3 hens": "4",
    "whale": "A",
    "squid": "(A)",
    "1 even": "no",
    "2 even": "yes",
    "Halve": r"\boxed{x/2}",
    "Double": r"\boxed{2 x}",
    "Command: walk": "I_WALK",
    "Command: jump twice": "I_JUMP I_JUMP",
}


def scholar(known: int) -> FakeChat:
    """A model that knows the first of some answers; what it does not know it guesses wrong."""
    answers = dict(list(RIGHT.items())[::2] if known == 1 else RIGHT.items())

    def says(text: str) -> str | None:
        return next((f"Well.\nanswer: {a}" for key, a in answers.items() if key in text), None)

    return instructed(says)


KINDS = ["gsm8k", "csqa", "strategyqa", "math", "scan"]


def test_every_method_runs_on_every_kind_of_benchmark(data: Path) -> None:
    pytest.importorskip("math_verify")
    pool = pool_of(scholar(1), scholar(2), language="any")
    names = chosen_methods("all,cot-1,tot-1", pool)
    told: list[tuple[str, str]] = []
    done = evaluate(
        Setup(pool, tuple(names), data=data), KINDS, lambda *both: told.append(both)
    ).outcomes
    assert list(dict.fromkeys(o.benchmark for o in done)) == KINDS
    assert [o.method for o in done if o.benchmark == "csqa"] == [n for n in names for _ in (1, 2)]
    assert len(told) == sum(not is_derived(o.method, pool) for o in done)
    for kind in KINDS:
        right = {(o.method, o.query): o.right for o in done if o.benchmark == kind}
        queries = [question.query for question in load(kind, data=data)]
        assert sorted(right["single-1", query] for query in queries) == [False, True], kind
        for name in ("single-2", "cot-strongest", "tot-strongest", "oracle", "plan-2", "router"):
            assert all(right[name, query] for query in queries), (kind, name)
    net = {(o.benchmark, o.method, o.query): o.net_usd for o in done}
    assert all(usd > 0 for usd in net.values())
    for o in done:
        if o.method == "oracle":
            cheap = next(p for p in done if (p.method, p.query) == ("single-1", o.query))
            assert o.net_usd == (net[o.benchmark, f"single-{1 if cheap.right else 2}", o.query])


def test_a_pool_with_a_language_of_its_own_is_not_asked_in_english(data: Path) -> None:
    pool = pool_of(FakeChat(answer=str), FakeChat(answer=str), language="lab")
    with pytest.raises(ConfigError, match="a language of its own and gsm8k English"):
        evaluate(Setup(pool, ("single-1",), data=data), ["gsm8k"], lambda *_: None)


def test_other_pools_are_told_how_to_answer_the_labs_queries() -> None:
    chat = WholeChat(answer=lambda _: "Let me see.\nanswer: 7")
    pool = pool_of(chat, chat, language="any")
    done = evaluate(Setup(pool, ("single-1",), limit=2), ["arith"], lambda *_: None).outcomes
    assert len(done) == 2
    assert all("answer: …" in prompt for prompt in chat.prompts)
