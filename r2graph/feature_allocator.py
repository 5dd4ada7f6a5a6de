"""An allocator that reads a step's text by rule: it asks no model and needs no download.

A ridge regression foretells, from n-grams and traits of the text, how likely each member is to do
it well. `r2graph fit` makes one from recorded outcomes. In a router's directory it is

allocator/features.json     whose success is foretold
allocator/features.npz      with which numbers; nothing in it is ever run
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from zipfile import BadZipFile
from zlib import error as ZlibError  # noqa: N812 - it is a class

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from r2graph.allocate import AllocateContext, Allocator, Choice
from r2graph.errors import (
    AllocationError,
    ConfigError,
    MissingExtraError,
    RouterFileError,
    first_fault,
)
from r2graph.features import N_BUCKETS, TRAITS, grams, traits
from r2graph.plan import Subtask

if TYPE_CHECKING:
    import numpy as np
    from langchain_core.embeddings import Embeddings
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DESCRIPTION = "features.json"
NUMBERS = "features.npz"


class Description(BaseModel):
    """What the numbers are of."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    format: Literal[1] = 1
    members: Annotated[tuple[str, ...], Field(min_length=1)]
    traits: tuple[str, ...] = TRAITS
    waves: Annotated[int, Field(ge=1)]
    embedding: Annotated[int, Field(ge=0)] = 0
    """Dimensions of the embedding that a text has besides; 0: none is wanted."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays."""
        n = len(self.members)
        return {
            "directions": (len(self.traits), self.waves),
            "phases": (self.waves,),
            "of_waves": (self.waves, n),
            "of_grams": (N_BUCKETS, n),
            "of_embedding": (self.embedding, n),
            "constant": (n,),
        }


@dataclass(frozen=True)
class OutcomeModel:
    """How likely each member is to do a text well: linear in its features.

    They are its n-grams; its traits as cosine waves, which can follow curves (random Fourier
    features: Rahimi and Recht, 2007); an embedding, if wanted; and a constant.
    """

    about: Description
    directions: Floats
    phases: Floats
    of_waves: Floats
    of_grams: Floats
    of_embedding: Floats
    constant: Floats

    def chances(self, texts: Sequence[str], embeddings: Embeddings | None = None) -> Floats:
        """Texts x members, each 0 to 1; raises `ConfigError` if it lacks the embeddings."""
        import numpy as np

        if self.about.embedding and embeddings is None:
            raise ConfigError("this router was fitted with embeddings: pass the same ones to it")
        found = waves(np.array([*map(traits, texts)]), self.directions, self.phases) @ self.of_waves
        for row, text in zip(found, texts, strict=True):
            counts = grams(text)
            row += np.array([*counts.values()]) @ self.of_grams[[*counts]]
        if self.about.embedding and embeddings is not None:
            found += unit_rows(embeddings.embed_documents([*texts])) @ self.of_embedding
        chances: Floats = np.clip(found + self.constant, 0, 1)
        return chances

    def save(self, folder: Path) -> None:
        import numpy as np

        folder.mkdir(parents=True, exist_ok=True)
        (folder / DESCRIPTION).write_text(self.about.model_dump_json(indent=1) + "\n")
        arrays = {name: getattr(self, name).astype("float32") for name in self.about.shapes()}
        np.savez_compressed(folder / NUMBERS, **arrays)

    @classmethod
    def load(cls, folder: Path) -> OutcomeModel:
        """Raises `RouterFileError`, or without numpy `MissingExtraError`."""
        about = describe(folder)
        try:
            import numpy as np
        except ModuleNotFoundError as error:
            raise MissingExtraError("a router of features", "eval") from error
        try:
            with (
                (folder / NUMBERS).open("rb") as opened,
                np.load(opened, allow_pickle=False) as file,
            ):
                arrays = {name: file[name].astype(float) for name in about.shapes()}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, ZlibError):
            raise RouterFileError(f"the {NUMBERS} of a router cannot be read") from None
        if {name: array.shape for name, array in arrays.items()} != about.shapes():
            raise RouterFileError(f"the {NUMBERS} of a router does not fit its {DESCRIPTION}")
        return cls(about, **arrays)


def waves(traits: Floats, directions: Floats, phases: Floats) -> Floats:
    """Rows of traits as rows of waves, whose squares sum to 1 in the mean."""
    import numpy as np

    found: Floats = np.cos(traits @ directions + phases) * np.sqrt(2 / len(phases))
    return found


def unit_rows(embedded: Sequence[Sequence[float]]) -> Floats:
    """Embeddings, each of length 1."""
    import numpy as np

    rows: Floats = np.array(embedded, dtype=float)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


def describe(folder: Path) -> Description:
    """What a directory's numbers are of; raises `RouterFileError`."""
    try:
        about = Description.model_validate_json((folder / DESCRIPTION).read_bytes())
    except OSError:
        raise RouterFileError(f"the router has no {folder.name}/{DESCRIPTION}") from None
    except ValidationError as error:
        raise RouterFileError(f"{DESCRIPTION} of a router: {first_fault(error)}") from None
    if about.traits != TRAITS:
        raise RouterFileError("the router was fitted to other traits of texts: fit it again")
    return about


class FeatureAllocator(Allocator):
    """Starts each step on the cheapest member that is nearly as likely to do it as the likeliest.

    Nearly is `quality` times its chance: at 1 the likeliest member is chosen, at 0 the cheapest. A
    step that nobody is likely to do is thus not given to the dearest. Members of the pool that were
    not there when it was fitted are for escalation only.
    """

    def __init__(self, model: OutcomeModel | Path, embeddings: Embeddings | None = None) -> None:
        self.about = model.about if isinstance(model, OutcomeModel) else describe(model)
        self.embeddings = embeddings
        self._source = model

    @cached_property
    def model(self) -> OutcomeModel:
        """Read from its directory on first use."""
        source = self._source
        return source if isinstance(source, OutcomeModel) else OutcomeModel.load(source)

    def allocate(self, steps: Sequence[Subtask], context: AllocateContext) -> list[Choice]:
        prices = {spec.name: spec.price for spec in context.pool.members}
        costs = {
            name: float(prices[name].input_per_mtok + prices[name].output_per_mtok)
            for name in self.about.members
            if name in prices
        }
        if not costs:
            raise AllocationError("the router knows no member of the pool")
        table = self.model.chances([step.text for step in steps], self.embeddings)
        rows = [dict(zip(self.about.members, map(float, row), strict=True)) for row in table]
        return [_choice({name: row[name] for name in costs}, costs, context) for row in rows]


def _choice(
    chances: Mapping[str, float], costs: Mapping[str, float], context: AllocateContext
) -> Choice:
    member = cheapest(chances, costs, context.quality)
    return Choice(member, f"chance {chances[member]:.2f} of {max(chances.values()):.2f}")


def cheapest(chances: Mapping[str, float], costs: Mapping[str, float], quality: float) -> str:
    """The cheapest member whose chance is at least `quality` times the best one.

    Of those that cost the same, the likeliest.
    """
    enough = quality * max(chances.values())
    return min(
        (name for name, chance in chances.items() if chance >= enough),
        key=lambda name: (costs[name], -chances[name]),
    )
