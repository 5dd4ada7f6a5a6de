"""Verifiers: yes, no, or cannot say; and what a step or an answer needs for either."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from r2graph.calls import Reply, flowing
from r2graph.errors import ConfigError, LimitExceeded, ModelCallError
from r2graph.pool import ModelPool
from r2graph.verify import (
    AgreementVerifier,
    AllOf,
    AnyOf,
    Attempt,
    CallableVerifier,
    ConfidenceVerifier,
    FormatVerifier,
    JudgeVerifier,
    Verdict,
    Verifier,
    VerifyContext,
)
from tests.fakes import echo, pool_of, replay, reply

POOL = pool_of(echo(), echo(), echo())
DOWN = ModelCallError("m2", "server")


def attempt(output: str = "42", *, member: str | None = "m1", **fields: Any) -> Attempt:
    messages = [HumanMessage("6 * 7")]
    answered = reply(output, **fields)
    return Attempt("6 * 7", output, member, answered, messages=messages, step="s1")


def verdict(
    verifier: Verifier, tried: Attempt, *replies: Reply | ModelCallError, pool: ModelPool = POOL
) -> Verdict:
    found, _ = replay(flowing(verifier.verify(tried, VerifyContext(pool, "6 * 7"))), *replies)
    return found


def say(ok: bool | None) -> CallableVerifier:
    return CallableVerifier(lambda _: Verdict(ok, f"says {ok}"))


def test_form_can_refuse_but_not_confirm() -> None:
    assert verdict(FormatVerifier(), attempt()).ok is None
    assert verdict(FormatVerifier(), attempt(" \n")).ok is False
    assert verdict(FormatVerifier(), attempt(truncated=True)).ok is False
    assert verdict(FormatVerifier(r"-?\d+"), attempt()).ok is None
    assert verdict(FormatVerifier(r"-?\d+"), attempt("42.")).ok is False
    with pytest.raises(ConfigError):
        FormatVerifier("(")


def test_confidence_is_the_mean_log_probability() -> None:
    check = ConfidenceVerifier(-0.2)
    assert verdict(check, attempt(mean_logprob=-0.2)) == Verdict(
        True, "the model is confident", -0.2
    )
    assert verdict(check, attempt(mean_logprob=-0.21)).ok is False
    lenient = ConfidenceVerifier(-0.2, refuses=False)
    assert verdict(lenient, attempt(mean_logprob=-0.21)).ok is None
    for threshold in (0.9, [-0.2] * 3, [*[-0.2] * 9, 0.1]):
        with pytest.raises(ConfigError):
            ConfidenceVerifier(threshold)


def test_confidence_may_be_asked_for_by_quality_level() -> None:
    check = ConfidenceVerifier([-0.1 * (10 - level) for level in range(10)])  # 1 down to .1
    tried = attempt(mean_logprob=-0.55)
    verdicts = [check.verify(tried, VerifyContext(POOL, "6 * 7", q / 10)) for q in range(1, 11)]
    assert [found.ok for found in verdicts] == [True] * 5 + [False] * 5


def test_a_model_without_log_probabilities_has_no_confidence() -> None:
    found = verdict(ConfidenceVerifier(), attempt())
    assert (found.ok, found.reason) == (None, "confidence is unavailable")


@pytest.mark.parametrize(
    ("said", "ok"),
    [("yes", True), ("Yes.", True), ("**No**, it is", False), ("maybe", None), ("", None)],
)
def test_a_judge_says_yes_or_no(said: str, ok: bool | None) -> None:
    assert verdict(JudgeVerifier(), attempt(), reply(said)).ok is ok


def test_a_judge_is_stronger_than_who_it_judges() -> None:
    named = pool_of(echo(), echo(), echo(), judge="m2")
    cases = [
        (JudgeVerifier(), "m1", POOL, "m2"),
        (JudgeVerifier(), "m3", POOL, None),
        (JudgeVerifier("m3"), "m1", POOL, "m3"),
        (JudgeVerifier(), "m1", named, "m2"),
        (JudgeVerifier(), "m2", named, None),
        (JudgeVerifier(), None, named, "m2"),
        (JudgeVerifier(), None, POOL, None),
    ]
    for judge, member, pool, expected in cases:
        tried = attempt(member=member)
        replies = [reply("yes")] if expected else []
        found, calls = replay(flowing(judge.verify(tried, VerifyContext(pool, "6 * 7"))), *replies)
        assert [call.spec.name for call in calls] == ([expected] if expected else [])
        assert found.ok is (True if expected else None)


def test_a_judge_that_is_down_says_nothing_about_the_answer() -> None:
    assert verdict(JudgeVerifier(POOL.names[-1]), attempt(), DOWN).ok is None


def test_a_limit_ends_a_check() -> None:
    flow = JudgeVerifier().verify(attempt(), VerifyContext(POOL, "6 * 7"))
    with pytest.raises(LimitExceeded):
        replay(flowing(flow), LimitExceeded("budget"))


def test_agreement_asks_the_same_member_again() -> None:
    check = AgreementVerifier(3)
    replies = [reply("42"), reply(" 42. "), reply("41")]
    found, calls = replay(flowing(check.verify(attempt(), VerifyContext(POOL, ""))), *replies)
    assert found.ok
    assert found.score == pytest.approx(2 / 3)
    assert {(call.spec.name, call.role, call.messages[0].text) for call in calls} == {
        ("m1", "verifier", "6 * 7")
    }
    assert all(call.temperature for call in calls)
    assert verdict(check, attempt(), reply("1"), reply("2"), reply("42")).ok is False
    assert verdict(check, attempt(), reply("42"), DOWN).ok is None
    assert verdict(check, attempt(member=None)).ok is None
    with pytest.raises(ConfigError):
        AgreementVerifier(0)


def test_any_function_can_check() -> None:
    check = CallableVerifier(lambda tried: tried.output == "42")
    assert verdict(check, attempt()).ok is True
    assert verdict(check, attempt("41")).ok is False
    assert verdict(CallableVerifier(lambda _: None), attempt()).ok is None

    async def slow(_: Attempt) -> bool:
        return True

    with pytest.raises(ConfigError):
        CallableVerifier(slow)  # type: ignore[arg-type]


T, F, N = True, False, None


@pytest.mark.parametrize(
    ("parts", "all_of", "any_of"),
    [
        ([T, T], T, T),
        ([T, F], F, T),
        ([F, T], F, T),
        ([F, F], F, F),
        ([N, T], T, T),
        ([T, N], T, T),
        ([N, F], F, F),
        ([N, N], N, N),
        ([], N, N),
    ],
)
def test_verdicts_combine(
    parts: list[bool | None], all_of: bool | None, any_of: bool | None
) -> None:
    checks = [say(part) for part in parts]
    assert verdict(AllOf(*checks), attempt()).ok is all_of
    assert verdict(AnyOf(*checks), attempt()).ok is any_of


def test_a_sure_model_needs_no_judge() -> None:
    check = AnyOf(ConfidenceVerifier(-0.1, refuses=False), JudgeVerifier())
    assert verdict(check, attempt(mean_logprob=-0.01)).ok is True
    assert verdict(check, attempt(mean_logprob=-1.0), reply("yes")).ok is True
    assert verdict(check, attempt(), reply("no")).ok is False


def test_combinations_ask_for_what_their_parts_need() -> None:
    assert not AllOf(FormatVerifier(), JudgeVerifier()).logprobs
    assert AllOf(FormatVerifier(), AnyOf(ConfidenceVerifier(), JudgeVerifier())).logprobs
