"""Routers: a directory with a card and two models, and what it says when something is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from r2graph.allocate import CheckpointAllocator
from r2graph.decompose import CheckpointDecomposer
from r2graph.errors import RouterFileError, RouterMismatchError, UnsupportedQueryError
from r2graph.router import Router, RouterCard, load_router, reader
from r2graph.verify import AllOf, FormatVerifier
from tests.fakes import echo, member, pool_of

PRICE = {"input_per_mtok": 0.3, "output_per_mtok": 0.3}
CARD: dict[str, Any] = {
    "name": "mine",
    "language": "lab",
    "base": "m6 and m4 of the lab",
    "trained_with": "SFT, trl 1.16",
    "command": "python -m training.sft",
    "seed": 1,
    "data_sha256": "0" * 64,
    "prices": {"decomposer": PRICE, "allocator": PRICE},
}


def lab_router() -> Router:
    """A router of the lab's language that is made of fakes."""
    return Router(
        CheckpointDecomposer(member("planner", echo())),
        CheckpointAllocator(member("chooser", echo())),
        FormatVerifier(),
        RouterCard.model_validate(CARD),
    )


def directory(path: Path, **changes: Any) -> Path:
    (path / "router.yaml").write_text(yaml.safe_dump(CARD | changes))
    for module in ("decomposer", "allocator"):
        (path / module).mkdir()
        (path / module / "model.safetensors").touch()
    return path


def test_a_router_is_read_from_its_directory(tmp_path: Path) -> None:
    router = load_router(directory(tmp_path, n_slots=5))
    assert isinstance(router.decomposer, CheckpointDecomposer)
    assert isinstance(router.allocator, CheckpointAllocator)
    assert router.decomposer.model.name == "mine-decomposer"
    assert router.decomposer.model.model == f"local:{tmp_path / 'decomposer'}"
    assert router.decomposer.model.is_local
    assert float(router.allocator.model.price.input_per_mtok) == 0.3
    assert router.allocator.n_slots == 5
    assert isinstance(router.verifier, FormatVerifier)


def test_a_router_may_come_with_a_confidence_threshold(tmp_path: Path) -> None:
    router = load_router(directory(tmp_path, confidence_thresholds=[-0.05] * 10))
    assert isinstance(router.verifier, AllOf)
    assert router.verifier.logprobs


def test_a_router_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(RouterFileError, match="lab"):
        load_router(tmp_path / "nowhere")
    with pytest.raises(RouterFileError):
        load_router("nowhere")


@pytest.mark.parametrize(
    "changes",
    [
        {"colour": "red"},
        {"format": 2},
        {"data_sha256": "abc"},
        {"confidence_thresholds": [0.9] * 10},
        {"confidence_thresholds": [-0.1] * 3},
        {"name": "../up"},
        {"prices": {"decomposer": PRICE}},
    ],
    ids=str,
)
def test_a_card_that_does_not_read_is_a_typed_error(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(RouterFileError, match=next(iter(changes))):
        load_router(directory(tmp_path, **changes))


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00", "!!python/object/apply:os.getcwd []"])
def test_a_card_that_is_no_yaml_mapping_is_a_typed_error(tmp_path: Path, text: str) -> None:
    directory(tmp_path)
    (tmp_path / "router.yaml").write_text(text)
    with pytest.raises(RouterFileError):
        load_router(tmp_path)


def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    directory(tmp_path)
    (tmp_path / "allocator/model.safetensors").rename(tmp_path / "allocator/pytorch_model.bin")
    with pytest.raises(RouterFileError, match="allocator"):
        load_router(tmp_path)


def test_a_router_serves_only_pools_of_its_language() -> None:
    lab_router().admit(pool_of(echo(), language="lab"))
    with pytest.raises(RouterMismatchError, match="speaks 'lab'"):
        lab_router().admit(pool_of(echo(), language="any"))


def test_the_labs_queries_are_read_in_its_spelling() -> None:
    read = reader("lab")
    assert read(" walk  left ") == "walk left"
    with pytest.raises(UnsupportedQueryError):
        read("Who wrote Hamlet?")
    assert reader("any")("Who wrote  Hamlet?") == "Who wrote  Hamlet?"
