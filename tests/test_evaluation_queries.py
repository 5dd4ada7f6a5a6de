"""Routers that choose one member for the whole query, on outcomes that are known."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from random import Random

import pytest

from r2graph.errors import ConfigError
from r2graph.evaluation.outcomes import Outcome
from r2graph.evaluation.query_routers import QueryRouters, hangs_on_another, is_query_router

N = 60
SINGLES = ["single-1", "single-2", "single-3"]
QUERIES = [f"{'add' if at % 2 else 'derive'} item {at}" for at in range(N)]
EASY = [query.startswith("add") for query in QUERIES]


def outcomes(method: str, right: list[bool], cost: int, benchmark: str = "a") -> list[Outcome]:
    return [
        Outcome(benchmark, method, query, ok, Decimal(cost), Decimal(cost), 1, 0.0)
        for query, ok in zip(QUERIES, right, strict=True)
    ]


# The cheapest knows how to add, the dearest both, the one between them neither.
TABLE = {
    "single-1": outcomes("single-1", EASY, 1),
    "single-2": outcomes("single-2", [False] * N, 2),
    "single-3": outcomes("single-3", [True] * N, 10),
    "router": outcomes("router", [True] * N, 4),
}


def routers(**more: object) -> QueryRouters:
    return QueryRouters({"a": TABLE}, SINGLES, **more)  # type: ignore[arg-type]


def cost(name: str, chosen: QueryRouters | None = None) -> float:
    done = (chosen or routers()).outcomes("a", name)
    assert [o.query for o in done] == QUERIES
    assert {o.method for o in done} == {name}
    return float(sum(o.net_usd for o in done)) / N


def accuracy(name: str) -> float:
    return sum(o.right for o in routers().outcomes("a", name)) / N


def test_the_best_single_member_is_that_of_all_benchmarks_together() -> None:
    other = {
        name: outcomes(name, [name != "single-3"] * N, k, "b") for k, name in enumerate(SINGLES, 1)
    }
    assert routers().best == 2
    assert QueryRouters({"a": TABLE, "b": other}, SINGLES).best == 0
    assert (accuracy("best-single"), cost("best-single")) == (1, 10)


def test_the_oracle_pays_the_cheapest_that_is_right_or_the_cheapest() -> None:
    assert (accuracy("oracle"), cost("oracle")) == (1, (1 + 10) / 2)
    nobody = {name: [replace(o, right=False) for o in TABLE[name]] for name in SINGLES}
    assert cost("oracle", QueryRouters({"a": nobody}, SINGLES)) == 1


def test_a_coin_costs_what_the_router_costs() -> None:
    assert cost("random:router") == pytest.approx(4, abs=1.5)
    assert cost("random:router") == cost("random:router")
    assert cost("random:single-3") == 10
    assert cost("random:single-1") == 1


@pytest.mark.parametrize("name", ["knn", "bow@0.5", "threshold"])
def test_what_learns_sends_each_kind_of_query_where_it_is_done(name: str) -> None:
    assert accuracy(name) == 1
    assert cost(name) == (1 + 10) / 2


@pytest.mark.parametrize("name", ["knn", "bow", "threshold"])
def test_a_setting_trades_accuracy_for_cost(name: str) -> None:
    assert cost(f"{name}@0") == 1
    assert cost(f"{name}@1") > 1


def test_a_threshold_gives_the_strongest_member_its_share() -> None:
    assert cost("threshold@0.25") == pytest.approx(0.25 * 10 + 0.75)
    assert accuracy("threshold@0.25") == 0.75  # none of it is wasted on what the cheapest knows
    assert cost("threshold@1") == 10


def test_the_default_setting_is_the_quality() -> None:
    assert cost("bow", routers(quality=0.0)) == 1


def test_nobody_learns_from_the_query_that_is_asked() -> None:
    noise = [bool(bit) for bit in Random(1).choices((0, 1), k=N)]
    alone = [f"word{at}" for at in range(N)]
    done = [
        replace(o, query=query, right=ok)
        for o, query, ok in zip(TABLE["single-1"], alone, noise, strict=True)
    ]
    table = dict.fromkeys(SINGLES, done)
    chances = QueryRouters({"a": table}, SINGLES).chances("a", "bow")[:, 0]
    wrong = sum((chance >= 0.5) != ok for chance, ok in zip(chances, noise, strict=True))
    assert wrong > N / 4  # from its own outcome it would know them all


def test_earlier_outcomes_teach_unless_they_are_of_the_same_queries() -> None:
    before = [
        replace(o, query=f"{o.query} again", right=not o.right)
        for name in SINGLES
        for o in TABLE[name]
    ]
    assert cost("bow@1", routers(before=before)) == pytest.approx(2, abs=1)  # all upside down
    same = [o for name in SINGLES for o in TABLE[name]]
    with pytest.raises(ConfigError, match="nothing to learn a from"):
        routers(before=same).outcomes("a", "bow")


def test_what_cannot_be_learned_or_matched_is_refused() -> None:
    one = {name: done[:1] for name, done in TABLE.items()}
    with pytest.raises(ConfigError, match="at least two"):
        QueryRouters({"a": one}, SINGLES).outcomes("a", "knn")
    with pytest.raises(ConfigError, match="needs plan-1"):
        routers().outcomes("a", "random:plan-1")


def test_names_tell_who_calls_no_model() -> None:
    assert all(map(is_query_router, ["oracle", "best-single", "random:router", "knn", "bow@.5"]))
    assert not any(map(is_query_router, ["random", "single-1", "router@0.5", "knn@much", "cot-1"]))
    assert hangs_on_another("random:knn")
