"""Fit an outcome model to recorded outcomes: ridge regression, checked by leaving one out.

Features have no settings of their own. What remains, how much the regression holds back and how
much traits count beside n-grams, is chosen by the squared error on texts that were left out, which
ridge regression tells without fitting again (Allen's PRESS, 1974).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.sparse import csr_matrix, hstack  # type: ignore[import-untyped]
from sklearn.linear_model import Ridge  # type: ignore[import-untyped]

from r2graph.errors import ConfigError, first_fault
from r2graph.feature_allocator import Description, OutcomeModel, unit_rows, waves
from r2graph.features import N_BUCKETS, TRAITS, grams, traits
from r2graph.pricing import Price
from r2graph.replay.table import Floats, Replay, Rows
from r2graph.router import CARD, Prices, RouterCard

N_WAVES = 512
SHARES = (0.35, 0.5, 0.65)
"""Of traits, beside n-grams and embeddings, in what makes two texts alike."""
PENALTIES = (1.0, 2.0, 4.0, 8.0, 16.0)
CONSTANT = 10.0  # so large that its weight is hardly held back
MAX_LEFT_OUT = 2_000  # texts, drawn at random: the time grows with their third power
MIN_OUTCOMES = 20  # of a model


@dataclass(frozen=True)
class Features:
    """Of some texts, before anything is learned."""

    grams: csr_matrix
    traits: Floats
    embedded: Floats
    """Rows of length 1, or of no columns."""

    @classmethod
    def of(cls, texts: Sequence[str], embeddings: Embeddings | None = None) -> Features:
        counts = [grams(text) for text in texts]
        ends = np.cumsum([0, *map(len, counts)])
        columns = np.array([bucket for row in counts for bucket in row], dtype=int)
        values = np.array([value for row in counts for value in row.values()], dtype=float)
        return cls(
            csr_matrix((values, columns, ends), shape=(len(texts), N_BUCKETS)),
            np.array([*map(traits, texts)]),
            unit_rows(embeddings.embed_documents([*texts]))
            if embeddings
            else np.zeros((len(texts), 0)),
        )

    def rows(self, rows: Rows) -> Features:
        return Features(self.grams[rows], self.traits[rows], self.embedded[rows])


@dataclass(frozen=True)
class Space:
    """The scales on which features count; all but `share` is read off the texts."""

    directions: Floats
    phases: Floats
    gram_scale: float
    share: float = 0.5

    @classmethod
    def of(cls, features: Features, seed: int) -> Space:
        random = np.random.default_rng(seed)
        spread = features.traits.std(axis=0)
        varied = spread > 0
        # A Gaussian kernel on standardised traits; one that never varies says nothing.
        drawn = random.normal(size=(len(TRAITS), N_WAVES)) / max(1, varied.sum()) ** 0.5
        directions = drawn * np.divide(1, spread, out=np.zeros_like(spread), where=varied)[:, None]
        phases = random.uniform(0, 2 * np.pi, N_WAVES) - features.traits.mean(axis=0) @ directions
        lengths = features.grams.multiply(features.grams).sum(axis=1)
        return cls(directions, phases, float(np.mean(lengths) or 1.0) ** -0.5)

    def matrix(self, features: Features) -> csr_matrix:
        """Texts x (waves, n-grams, embedding, constant)."""
        seen = waves(features.traits, self.directions, self.phases) * self.share**0.5
        rest = (1 - self.share) ** 0.5
        constant = np.full((len(seen), 1), CONSTANT)
        blocks = [seen, features.grams * (rest * self.gram_scale), features.embedded * rest]
        return hstack([*map(csr_matrix, blocks), csr_matrix(constant)], format="csr")

    def model(self, weights: Floats, models: tuple[str, ...], embedding: int) -> OutcomeModel:
        """`weights`: columns of the matrix x models."""
        n = N_WAVES + N_BUCKETS
        rest = (1 - self.share) ** 0.5
        return OutcomeModel(
            Description(members=models, waves=N_WAVES, embedding=embedding),
            self.directions,
            self.phases,
            weights[:N_WAVES] * self.share**0.5,
            weights[N_WAVES:n] * (rest * self.gram_scale),
            weights[n:-1] * rest,
            weights[-1] * CONSTANT,
        )


@dataclass(frozen=True)
class Fit:
    """A model, and how well it foretold texts that were left out."""

    model: OutcomeModel
    share: float
    penalty: float
    rows: Rows
    """Texts that were left out one by one, for the choice of share and penalty."""
    left_out: Floats
    """What all others foretold for them."""
    errors: Floats
    """Mean squared error (Brier score) of that, by member."""
    base_errors: Floats
    """The same of a member's mean score, whatever the text."""


def fit(
    replay: Replay,
    *,
    embeddings: Embeddings | None = None,
    features: Features | None = None,
    seed: int = 0,
) -> Fit:
    """An outcome model of the table's models; `features` of its texts spares computing them.

    What was asked twice counts as one text, which is left out as a whole. Raises `ConfigError` for
    a model with too few outcomes.
    """
    features = features or Features.of(replay.texts, embeddings)
    replay, first = replay.merged()
    features = features.rows(first)
    told = (~np.isnan(replay.scores)).sum(axis=0)
    if (told < MIN_OUTCOMES).any():
        few = int(np.argmin(told))
        raise ConfigError(
            f"{replay.models[few]!r} has outcomes on {told[few]} texts, and {MIN_OUTCOMES} are the "
            "least to fit: collect runs with exploration, or leave the model out"
        )
    space = Space.of(features, seed)
    drawn = _drawn(~np.isnan(replay.scores), seed)
    scores = replay.scores[drawn]
    tried = {}
    for share in SHARES:
        matrix = replace(space, share=share).matrix(features.rows(drawn))
        alike = (matrix @ matrix.T).toarray()
        for penalty, found in zip(PENALTIES, left_out(alike, scores, PENALTIES), strict=True):
            tried[share, penalty] = found
    errors = {each: np.nanmean((scores - found) ** 2, axis=0) for each, found in tried.items()}
    share, penalty = min(errors, key=lambda each: float(errors[each].mean()))
    space = replace(space, share=share)
    weights = _ridge(space.matrix(features), replay.scores, penalty)
    return Fit(
        space.model(weights, replay.models, features.embedded.shape[1]),
        share,
        penalty,
        first[drawn],
        tried[share, penalty],
        errors[share, penalty],
        np.nanvar(scores, axis=0),
    )


def save(
    fitted: Fit,
    replay: Replay,
    folder: Path,
    *,
    name: str,
    command: str,
    language: str = "any",
    decomposer: Literal["prompted", "single"] = "prompted",
    seed: int = 0,
) -> None:
    """Write a router that `load_router` reads; raises `ConfigError` for a name that is none."""
    free = Price(input_per_mtok=Decimal(0), output_per_mtok=Decimal(0))
    try:
        card = RouterCard(
            name=name,
            language=language,
            base="none: features of the text",
            trained_with=f"ridge regression, scikit-learn {version('scikit-learn')}",
            command=command,
            seed=seed,
            data_sha256=replay.sha256,
            prices=Prices(decomposer=free, allocator=free),
            decomposer=decomposer,
            allocator="features",
            members=replay.models,
        )
    except ValidationError as error:
        raise ConfigError(f"the router's card: {first_fault(error)}") from None
    fitted.model.save(folder / "allocator")
    told = card.model_dump(mode="json", exclude_none=True)
    (folder / CARD).write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")


def _drawn(known: NDArray[np.bool_], seed: int) -> Rows:
    """Texts to leave out: some at random of each model, and others up to the limit."""
    order = np.random.default_rng(seed).permutation(len(known))
    some = [order[known[order, model]][:MIN_OUTCOMES] for model in range(known.shape[1])]
    _, at = np.unique(np.concatenate([*some, order]), return_index=True)
    return np.concatenate([*some, order])[np.sort(at)][:MAX_LEFT_OUT]


def left_out(alike: Floats, scores: Floats, penalties: Sequence[float]) -> Floats:
    """By penalty, what is foretold for each text from all others; nan where there is no score.

    With G the inverse of (K + penalty I) the error of text i is (G y)_i / G_ii; the eigenvectors of
    K give G for all penalties.
    """
    found = np.full((len(penalties), *scores.shape), np.nan)
    for rows, columns in _same_rows(scores):
        values, vectors = np.linalg.eigh(alike[np.ix_(rows, rows)])
        told = scores[np.ix_(rows, columns)]
        for at, penalty in enumerate(penalties):
            inverse = 1 / (values + penalty)
            missed = (vectors * inverse) @ (vectors.T @ told) / (vectors**2 @ inverse)[:, None]
            found[at][np.ix_(rows, columns)] = np.clip(told - missed, 0, 1)
    return found


def _ridge(matrix: csr_matrix, scores: Floats, penalty: float) -> Floats:
    weights = np.zeros((matrix.shape[1], scores.shape[1]))
    for rows, columns in _same_rows(scores):
        solver = Ridge(alpha=penalty, fit_intercept=False, solver="sparse_cg", tol=1e-5)
        solver.fit(matrix[rows], scores[np.ix_(rows, columns)])
        weights[:, columns] = solver.coef_.reshape(len(columns), -1).T
    return weights


def _same_rows(scores: Floats) -> Iterator[tuple[Rows, Rows]]:
    """Models that have scores in the same rows are fitted at once."""
    known, which = np.unique(~np.isnan(scores), axis=1, return_inverse=True)
    for at in range(known.shape[1]):
        yield np.flatnonzero(known[:, at]), np.flatnonzero(which == at)
