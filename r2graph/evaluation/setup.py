"""What is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from r2graph import benchmarks as published
from r2graph.benchmarks import Question
from r2graph.benchmarks.catalogue import SIZE
from r2graph.errors import ConfigError
from r2graph.evaluation.lineup import (
    ELSEWHERE,
    OWN,
    follows_instructions,
    identities,
    is_derived,
    routed,
)
from r2graph.evaluation.replies import record_router
from r2graph.lab import benchmarks
from r2graph.lab.task import Task
from r2graph.limits import Limits
from r2graph.pool import ModelPool, load_pool
from r2graph.pricing import to_text
from r2graph.router import Router, load_parent, load_router

CONCURRENCY = 64  # queries at once: as many as a local model takes into one batch
FORM = "\n\nEnd with a line `answer: …` that holds the answer alone."  # the lab's queries have none

Asked = Task | Question


@dataclass(frozen=True)
class Setup:
    """What is evaluated: by name, or as a pool, so that another process has it too."""

    pool: str | ModelPool
    methods: tuple[str, ...]
    router: str | None = None
    quality: float = 0.9
    limit: int | None = None
    outcomes: Path | None = None
    """The file of an outcome cache, which processes and later evaluations share."""
    data: Path | None = None
    """Where benchmarks that do not come with r2graph are; `None`: the Hugging Face hub."""
    concurrency: int = CONCURRENCY
    """Queries at once, in each process."""
    max_tokens: int = Limits().max_output_tokens
    """Tokens that one call may generate."""
    max_usd: Decimal | None = None
    """What may be spent on calls that no cache knows."""
    out: Path | None = None
    """The file of a `Record`."""
    fit_on: Path | None = None
    """Such a file of an earlier evaluation, for methods that learn from outcomes."""
    detailed: bool = False
    """Whether outcomes should have the detail that a report tells."""
    ledger: str | Path | None = None
    """Where calls are kept, so that what is done again buys none again and workers share what may
    be spent: a file, or `postgresql://…`.
    """
    keeps_calls: bool = True
    """Whether the ledger keeps calls, or only what they cost."""


def settings(setup: Setup) -> object:
    """What outcomes hang on, besides benchmark, method and query, as JSON."""
    pool = pool_of(setup)
    members = [
        [spec.name, spec.identity, *map(to_text, dict(spec.price).values())]
        for spec in pool.members
    ]
    router = load_router(setup.router) if setup.router else None
    return [members, identities(router), setup.quality, setup.max_tokens]


def pool_of(setup: Setup) -> ModelPool:
    return setup.pool if isinstance(setup.pool, ModelPool) else load_pool(setup.pool)


def calling(setup: Setup) -> list[str]:
    """The methods that call models."""
    pool = pool_of(setup)
    return [name for name in setup.methods if not is_derived(name, pool)]


def questions(setup: Setup, name: str, pool: ModelPool) -> Sequence[Asked]:
    """What a benchmark asks the members of a pool; raises `ConfigError`."""
    if not follows_instructions(pool):
        if name not in benchmarks.NAMES:
            raise ConfigError(
                f"pool {pool.name!r} speaks a language of its own and {name} English: take one of "
                f"{', '.join(benchmarks.NAMES)}, or a pool of language `any`"
            )
        return benchmarks.tasks(name, setup.limit)
    found = published.load(name, data=setup.data, limit=setup.limit)
    if name in benchmarks.NAMES:
        found = [replace(question, query=question.query + FORM) for question in found]
    return found


def n_outcomes(setup: Setup, names: Sequence[str]) -> int:
    """How many queries there are to do, if the benchmarks have as many as are asked for."""
    sizes = [benchmarks.SIZE if name in benchmarks.NAMES else SIZE for name in names]
    return len(calling(setup)) * sum(setup.limit or size for size in sizes)


def other_routers(setup: Setup) -> dict[str, Router]:
    """The routers besides that of the setup which its methods ask for; raises `ConfigError`."""
    families = {found[0] for found in map(routed, setup.methods) if found}
    return {name: record_router(_other(name, setup.router)) for name in families.difference(OWN)}


def _other(family: str, router: str | None) -> Router:
    if family.startswith(ELSEWHERE):
        return load_router(family.removeprefix(ELSEWHERE))
    if router is None:
        raise ConfigError(f"there is no router: {family} would be the one that it was trained from")
    return load_parent(router)
