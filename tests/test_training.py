"""Training: the loss that is written out is that of transformers, and what models are taught."""

import json
from random import Random

import pytest
import torch

from r2graph.lab import arith
from training.corpus import rows, target
from training.forward import new_loss
from training.pretrain import SIZES, new_model
from training.router_data import allocation_rows


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
    """Slot 2 for a step with references to be filled in, slot 5 for any other."""

    def label(self, text: str, q: int) -> int:
        return 2 if "{" in text else 5


def test_the_allocator_is_taught_to_check_each_step_at_the_level_it_is_asked_at() -> None:
    lines = allocation_rows(arith.task("47 * 6 - 5000"), ByReference(), Random(1))  # type: ignore[arg-type]
    taught = [json.loads(line) for line in lines]
    asked = [row["prompt"][0]["content"].split("\n") for row in taught]
    answers = [row["completion"][0]["content"] for row in taught]
    a, b = asked[0][0], asked[2][0]
    assert a != b
    assert [steps for _, *steps in asked] == [
        ["s1: 47 * 6", "s2: {s1} - 5000"],
        ["s1: 282 - 5000"],
    ] * 2
    assert answers == ["m5 m2", "m5", "m5 m2", "m5"]
