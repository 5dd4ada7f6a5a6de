"""Routers: a trained decomposer and allocator with their card, as a directory.

router.yaml     the card: what it is for, how it was made, what it costs
decomposer/     a causal language model in Hugging Face format
allocator/      another one

A module that a server has need not lie here: the card then says under `served` how it is asked.
An allocator that reads features of a step's text has no language model; its decomposer may be a
prompt, or none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from r2graph.allocate import QUALITY_LEVELS, Allocator, CheckpointAllocator
from r2graph.decompose import (
    CheckpointDecomposer,
    Decomposer,
    PromptedDecomposer,
    SingleDecomposer,
)
from r2graph.errors import ConfigError, RouterFileError, RouterMismatchError, first_fault
from r2graph.feature_allocator import FeatureAllocator
from r2graph.pool import N_SLOTS, ModelPool, ModelSpec
from r2graph.pricing import Price
from r2graph.verify import (
    AllOf,
    AnyOf,
    ConfidenceVerifier,
    FormatVerifier,
    JudgeVerifier,
    Verifier,
)

CARD = "router.yaml"
MODULES = ("decomposer", "allocator")
_ARTEFACTS = Path(__file__).parent / "lab" / "artefacts"
_SHIPPED = {"lab": _ARTEFACTS / "router", "lab-sft": _ARTEFACTS / "router-sft"}


class Prices(BaseModel):
    """What the router's own models charge; they are on the bill like any other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decomposer: Price
    allocator: Price


class RouterCard(BaseModel):
    """Where a router comes from and what it is good for."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[\w.-]{1,60}$")]
    language: str
    """What the queries are written in; a router serves only pools of its own language."""
    n_slots: Annotated[int, Field(ge=1, le=99)] = N_SLOTS
    base: str
    """The models that were fine-tuned."""
    parent: Annotated[str, Field(min_length=1)] | None = None
    """The router before reinforcement learning: a shipped name, or a path from this directory."""
    trained_with: str
    """Method and software."""
    command: str
    """What made it."""
    seed: int
    data_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the training data."""
    prices: Prices
    decomposer: Literal["checkpoint", "prompted", "single"] = "checkpoint"
    allocator: Literal["checkpoint", "features"] = "checkpoint"
    members: tuple[str, ...] | None = None
    """Those it was fitted to, of which a pool must have one; `None`: it serves any."""
    served: dict[Literal["decomposer", "allocator"], dict[str, Any]] | None = None
    """Modules that a server has, each as a pool's member: `model`, `model_kwargs` and so on."""
    confidence_thresholds: (
        Annotated[
            tuple[Annotated[float, Field(le=0)], ...],
            Field(min_length=QUALITY_LEVELS, max_length=QUALITY_LEVELS),
        ]
        | None
    ) = None
    """By quality level, the mean token log-probability below which a step moves up; `None`: form is
    all.
    """


@dataclass(frozen=True)
class Router:
    """A decomposer and an allocator that were trained together, and the check that suits them."""

    decomposer: Decomposer
    allocator: Allocator
    verifier: Verifier
    card: RouterCard

    def admit(self, pool: ModelPool) -> None:
        """Raise `RouterMismatchError` unless the router can serve the pool."""
        if pool.language != self.card.language:
            raise RouterMismatchError(
                f"router {self.card.name!r} speaks {self.card.language!r} and pool {pool.name!r} "
                f"{pool.language!r}: leave the router out, or use a pool of its language"
            )
        if self.card.members is not None and not {*self.card.members} & {*pool.names}:
            raise RouterMismatchError(
                f"router {self.card.name!r} knows no member of pool {pool.name!r}, but "
                f"{', '.join(self.card.members)}: name members alike, or fit a router to this pool"
            )


def reader(language: str) -> Callable[[str], str]:
    """What gives a query of a pool's language its canonical spelling.

    It raises `UnsupportedQueryError` for a query outside a language that is known to the word.
    """
    if language == "lab":
        from r2graph.lab.language import check

        return check
    return str


def load_router(source: str | Path) -> Router:
    """A router that r2graph ships (`lab`, `lab-sft`), or one from a directory.

    Reads the card; the models are loaded on their first call, from safetensors alone. Raises
    `RouterFileError`.
    """
    folder = _folder(source)
    card = _card(folder, source)
    return Router(_decomposer(folder, card), _allocator(folder, card), _verifier(card), card)


def load_parent(source: str | Path) -> Router:
    """The router that another was trained from by reinforcement learning.

    Raises `ConfigError` if its card names none, and what `load_router` raises.
    """
    folder = _folder(source)
    parent = _card(folder, source).parent
    if parent is None:
        raise ConfigError(
            f"{CARD} of router {str(source)!r} names no parent: it was not trained on"
        )
    return load_router(parent if parent in _SHIPPED else folder / parent)


def _folder(source: str | Path) -> Path:
    return _SHIPPED.get(str(source)) or Path(source).expanduser()


def _card(folder: Path, source: str | Path) -> RouterCard:
    try:
        data = yaml.safe_load((folder / CARD).read_bytes())
    except OSError:
        raise RouterFileError(
            f"router {str(source)!r} is neither a directory with a {CARD} nor one of "
            f"{', '.join(_SHIPPED)}"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RouterFileError(f"{CARD} of router {str(source)!r} is not YAML") from None
    try:
        return RouterCard.model_validate(data)
    except ValidationError as error:
        raise RouterFileError(f"{CARD} of router {str(source)!r}: {first_fault(error)}") from None


def _decomposer(folder: Path, card: RouterCard) -> Decomposer:
    if card.decomposer == "single":
        return SingleDecomposer()
    if card.decomposer == "prompted":
        return PromptedDecomposer()
    return CheckpointDecomposer(_module(folder, card, "decomposer", card.prices.decomposer))


def _allocator(folder: Path, card: RouterCard) -> Allocator:
    if card.allocator == "features":
        return FeatureAllocator(folder / "allocator")
    model = _module(folder, card, "allocator", card.prices.allocator)
    return CheckpointAllocator(model, n_slots=card.n_slots)


def _module(
    folder: Path, card: RouterCard, module: Literal["decomposer", "allocator"], price: Price
) -> ModelSpec:
    asked = (card.served or {}).get(module)
    if asked is None:
        if not any((folder / module).glob("*.safetensors")):
            raise RouterFileError(f"router {card.name!r} has no {module}/*.safetensors")
        asked = {"model": f"local:{(folder / module).resolve()}", "tags": {"local"}}
    member = {"name": f"{card.name}-{module}", "price": price} | asked
    try:
        return ModelSpec.model_validate(member, context=folder)
    except ValidationError as error:
        raise RouterFileError(
            f"{CARD} of router {card.name!r}, served.{module}: {first_fault(error)}"
        ) from None


def _verifier(card: RouterCard) -> Verifier:
    if card.confidence_thresholds is not None:
        return AllOf(FormatVerifier(), ConfidenceVerifier(card.confidence_thresholds))
    if card.allocator == "features" and card.language == "any":  # as without a router
        sure = ConfidenceVerifier(-0.05, refuses=False)
        return AllOf(FormatVerifier(), AnyOf(sure, JudgeVerifier()))
    return FormatVerifier()
