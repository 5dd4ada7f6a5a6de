"""The outcome gradient: the loss is what a policy can expect, training lowers it and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training.labels import Labels
from training.outcome_gradient import Rows, expected_loss, train
from training.pretrain import SIZES, new_model
from training.router_data import Question
from training.settings import OutcomeGradient
from training.tokenizer import build

OSLO, LIMA = "country of Oslo", "country of Lima"
QUESTIONS = [Question((OSLO, LIMA), (OSLO, LIMA), 5), Question((LIMA,), (LIMA,), 5)]


class Recorded(Labels):
    """Oslo is best trusted on m2, Lima best checked on m4; all else costs one more."""

    def __init__(self) -> None:
        pass

    def losses(self, text: str, q: int) -> np.ndarray:
        losses = np.ones((2, 9))
        losses[(1, 1) if text == OSLO else (0, 3)] = 0.0
        return losses


@pytest.fixture(scope="module")
def rows() -> Rows:
    return Rows(QUESTIONS, Recorded())


def test_an_answer_has_a_loss_for_each_slot(rows: Rows) -> None:
    [both, one] = rows.answered
    tokens = build().convert_ids_to_tokens(both.tokens)
    assert [tokens[at] for at in both.slots] == ["▁m2", "▁m4"]
    assert tokens[both.slots[0] + 1] == "▁q1"
    assert [rows.losses_R2S[i].argmin().item() for i in both.losses] == [9 + 1, 3]
    assert both.losses[1:] == one.losses


def test_the_loss_is_what_the_policy_can_expect(rows: Rows) -> None:
    one = rows.answered[1]

    def policy(slot: int | None, trusts: float, ends: float = 1.0) -> Tensor:
        """The expected loss of a policy that writes one slot for sure, trusts so often, and else
        ends so often.
        """

        def logits(tokens: Tensor, places: Tensor) -> Tensor:
            said = torch.full((3, 256), -100.0)  # before the slot, after it, before the end
            said[0, int(rows.slots[slot]) if slot is not None else 5] = 100.0
            after = torch.tensor([trusts, (1 - trusts) * ends, (1 - trusts) * (1 - ends)])
            said[1:, [rows.trust, rows.end, 7]] = (after + 1e-9).log()
            return said

        assert one.tokens[one.slots[0]] == rows.slots[3]
        return expected_loss(logits, [one], rows)

    assert policy(3, 0.0).item() == pytest.approx(0.0, abs=1e-5)
    assert policy(3, 0.25).item() == pytest.approx(0.25, abs=1e-5)
    assert policy(6, 0.0).item() == pytest.approx(1.0, abs=1e-5)
    assert policy(None, 0.0).item() == pytest.approx(2.0, abs=1e-5)  # no slot at all
    assert policy(3, 0.5, ends=0.5).item() == pytest.approx(0.5 + 2.0 * 0.5, abs=1e-5)


def settings(steps: int, **more: int) -> OutcomeGradient:
    return OutcomeGradient(queries={"geo": 1}, steps=steps, learning_rate=1e-2, **more)


def test_training_lowers_the_loss_and_goes_on_where_it_was_stopped(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # without a compiler, so that the test is quick
    new_model(SIZES["allocator"], 1).save_pretrained(tmp_path / "start")
    train(settings(40), tmp_path / "start", rows, tmp_path / "whole", seed=1)
    log = json.loads((tmp_path / "whole/log.json").read_text())
    assert log[0]["reward"] < log[1]["reward"]

    class StoppedError(Exception):
        pass

    class Stopping(Rows):
        """Stands for a kill after 30 batches, the last checkpoint being of step 20."""

        def __init__(self) -> None:
            vars(self).update(vars(rows))

        def batches(self, seed: int):  # type: ignore[no-untyped-def]
            for number, batch in enumerate(super().batches(seed)):
                if number == 30:
                    raise StoppedError
                yield batch

    out = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        train(settings(40, save_every=20), tmp_path / "start", Stopping(), out, seed=1)
    train(settings(40, save_every=20), tmp_path / "start", rows, out, seed=1)
    for name in ("model.safetensors", "log.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
