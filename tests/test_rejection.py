"""Rejection sampling: the right plan of the lowest composite score."""

from decimal import Decimal
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from r2graph.plan import parse_text
from training.rejection import (
    Sample,
    Weights,
    conciseness,
    incoherence,
    practicality,
    score,
    select,
)

SUM = "s1: 2 + 3\ns2: {s1} * 4"
IDLE = "s1: 2 + 3\ns2: 7 + 7\ns3: {s1} * 4"
TWICE = "s1: 2 + 3\ns2: 2 +  3\ns3: {s1} * {s2}"


def sample(text: str, cost: str = "0.01", right: bool = True) -> Sample:
    return Sample(parse_text(text), right, Decimal(cost))


@st.composite
def sampled(draw: st.DrawFn) -> Sample:
    """A plan of one to six steps, each of which may use earlier ones."""
    lines = []
    for number in range(1, draw(st.integers(1, 6)) + 1):
        used = draw(st.sets(st.integers(1, number - 1), max_size=2)) if number > 1 else set()
        operands = [draw(st.sampled_from("abc")), *(f"{{s{step}}}" for step in sorted(used))]
        lines.append(f"s{number}: {' + '.join(operands)}")
    if draw(st.booleans()):
        lines.append(f"answer: {{s{draw(st.integers(1, len(lines)))}}}")
    cost = draw(st.decimals(0, 1, places=4))
    return Sample(parse_text("\n".join(lines)), draw(st.booleans()), cost)


def test_a_score_is_what_one_computes_by_hand() -> None:
    short, long = sample(SUM, "0.01"), sample(IDLE, "0.03")
    both = [short, long]
    assert [conciseness(one, both) for one in both] == pytest.approx([2 / 2.5, 3 / 2.5])
    assert [practicality(one, both) for one in both] == pytest.approx([0.5, 1.5])
    assert [incoherence(one.plan) for one in both] == [0, 1]
    assert score(short, both) == pytest.approx((0.8 / 1.8 + 0.5 / 1.5 + 0) / 3)
    assert score(long, both) == pytest.approx((1.2 / 2.2 + 1.5 / 2.5 + 1 / 2) / 3)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (SUM, 0),
        (IDLE, 1),
        (TWICE, 1),
        ("s1: a\ns2: b\nanswer: {s1} {s2}", 0),
        ("s1: a\ns2: b\nanswer: {s1}", 1),
        ("s1: a\ns2 (after s1): b", 1),  # an order, not a hand-over
        ("s1: a\ns2: {s1} b\ns3: c", 2),  # the first one is used, but by a useless step
        ("s1: a\ns2: A\ns3: c", 2),  # a useless repetition counts once
    ],
)
def test_a_step_that_repeats_another_or_helps_no_answer_is_incoherent(
    text: str, count: int
) -> None:
    assert incoherence(parse_text(text)) == count


def test_free_samples_are_all_of_mean_cost() -> None:
    samples = [sample(SUM, "0"), sample(IDLE, "0")]
    assert [practicality(one, samples) for one in samples] == [1, 1]


def test_a_weight_of_one_makes_its_term_the_score() -> None:
    samples = [sample(SUM, "0.01"), sample(IDLE, "0.03")]
    cheapest = Weights(conciseness=0, practicality=1, incoherence=0)
    assert score(samples[1], samples, cheapest) == pytest.approx(0.6)


def test_weights_add_up_to_one() -> None:
    with pytest.raises(ValidationError, match="add up to 1"):
        Weights(conciseness=1)


@given(st.lists(sampled(), min_size=1, max_size=5))
def test_a_score_lies_between_0_and_1(samples: list[Sample]) -> None:
    assert all(0 < score(one, samples) < 1 for one in samples)


@given(st.lists(sampled(), max_size=4), sampled(), st.data())
def test_an_unused_step_never_lowers_the_score(
    others: list[Sample], before: Sample, data: st.DataObject
) -> None:
    *_, last = before.plan.subtasks
    answer = before.plan.answer or f"{{{last.id}}}"
    used = data.draw(st.sets(st.sampled_from([step.id for step in before.plan.subtasks])))
    text = "a " + " ".join(f"{{{step}}}" for step in sorted(used))
    lines = [f"{step.id}: {step.text}" for step in before.plan.subtasks]
    lines += [f"s{len(lines) + 1}: {text}", f"answer: {answer}"]
    after = Sample(parse_text("\n".join(lines)), before.right, before.cost)
    assert score(after, [*others, after]) >= score(before, [*others, before])


@given(st.lists(sampled(), max_size=5), st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(
    samples: list[Sample], keep_wrong: bool, rng: Random
) -> None:
    shuffled = list(samples)
    rng.shuffle(shuffled)
    assert select(samples, keep_wrong) == select(shuffled, keep_wrong)


@given(st.lists(sampled(), min_size=1, max_size=5))
def test_the_selected_plan_is_the_best_right_one(samples: list[Sample]) -> None:
    right = [one for one in samples if one.right]
    chosen = select(samples)
    if not right:
        assert chosen is None
    else:
        assert chosen in right
        assert score(chosen, samples) == min(score(one, samples) for one in right)


def test_a_right_plan_is_preferred_to_any_better_wrong_one() -> None:
    wrong, right = sample("s1: 20", "0.001", right=False), sample(TWICE, "0.05")
    assert select([wrong, right]) == right
    assert select([wrong, right], keep_wrong=True) == right


def test_a_wrong_plan_is_kept_only_on_request() -> None:
    wrong = [sample(SUM, right=False), sample(IDLE, right=False)]
    assert select(wrong) is None
    assert select(wrong, keep_wrong=True) == wrong[0]
    assert select([], keep_wrong=True) is None
