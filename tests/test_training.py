"""Training: the loss that is written out is that of transformers, and what models are taught."""

from random import Random

import pytest
import torch

from r2graph.lab import arith
from r2graph.lab.task import Task
from r2graph.plan import single
from training.corpus import rows, target
from training.forward import new_loss
from training.labels import Choice, Labels
from training.outcomes import Outcome
from training.pretrain import SIZES, new_model
from training.router_data import questions


def test_the_loss_written_out_is_the_loss_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # without a compiler, so that the test is quick
    model = new_model(SIZES["m4"], seed=3)
    tokens = torch.randint(5, 255, (3, 12), generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    labels[:, :4] = -100
    labels[1, 9:] = -100  # a shorter row, padded on the right
    ours, theirs = new_loss(model)(tokens, labels), model(input_ids=tokens, labels=labels).loss
    torch.testing.assert_close(ours, theirs)


def test_a_long_product_is_taught_with_its_partial_products_hidden_before_it() -> None:
    assert target("arith", "47 * -68", "-3196") == ("<6><7><3><|><2><8><2><|><6><9><1><3><->-3196")


@pytest.mark.parametrize("prompt", ["47 * 6", "47 + 68", "47 * 68 - 1"])
def test_other_numbers_are_taught_last_digit_first(prompt: str) -> None:
    output = str(eval(prompt))
    scratch = "".join(f"<{digit}>" for digit in reversed(output))
    assert target("arith", prompt, output) == scratch + output


def test_each_operation_is_taught_under_its_kind() -> None:
    forms = [form for form, _, _ in rows(arith.task("47 * 6 - 5000"))]
    assert forms == ["* 2x1", "+- 4", "plan", "whole", "think"]


class ByReference:
    """Slot 2 for a step with references to be filled in, slot 5 and trust for any other."""

    def label(self, text: str, q: int) -> Choice:
        return (2, None) if "{" in text else (5, 1)


def test_the_allocator_is_taught_the_plan_and_each_step_that_it_is_asked_about_again() -> None:
    found = list(questions(arith.task("47 * 6 - 5000"), Random(1)))
    assert [question.prompt.split("\n")[1:] for question in found] == [
        ["s1: 47 * 6", "s2: {s1} - 5000"],
        ["s1: 282 - 5000"],
    ]
    assert [question.answer(ByReference()) for question in found] == ["m5 q1 m2", "m5 q1"]  # type: ignore[arg-type]


def outcome(model: str, prompt: str, text: str, confidence: float) -> Outcome:
    return Outcome(model, prompt, text, confidence, 10)


class Recorded:
    """m3 and up are right and sure; m1 says yes to all, surely; m2 is right of Oslo, but unsure."""

    def get(self, model: str, prompt: str) -> Outcome:
        right = "Norway" if prompt.endswith("Oslo") else "Mali"
        if model == "m1":
            return outcome(model, prompt, "yes", 0.999)
        if model == "m2":
            return outcome(model, prompt, "Norway", 0.85)
        return outcome(model, prompt, right, 0.999)


def country(city: str, name: str) -> Task:
    text = f"country of {city}"
    return Task("geo", text, name, single(text), {"s1": name}, {"s1": "fact"})


def test_a_label_trusts_what_is_known_by_heart_and_guesses_by_shape_what_is_not() -> None:
    tasks = [country("Oslo", "Norway"), *[country(f"Bamako {n}", "Mali") for n in range(9)]]
    prices = [2.0**slot for slot in range(9)]
    known = Labels(tasks, Recorded(), prices, facts=["country of Oslo"])  # type: ignore[arg-type]
    assert known.label("country of Oslo", 2) == (2, 1)
    assert known.label("country of Bamako 1", 9) == (3, None)
    unknown = Labels(tasks, Recorded(), prices)  # type: ignore[arg-type]
    assert unknown.label("country of Oslo", 2) == (3, None)
