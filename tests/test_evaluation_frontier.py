"""Routers at matched accuracy: what a curve costs between its points, and what is saved on it."""

import csv
import json
import warnings
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from r2graph.cli import app
from r2graph.errors import ConfigError
from r2graph.evaluation.frontier import Gain, cost_at, curves, gains, points
from r2graph.evaluation.lineup import chosen_methods, routed
from r2graph.evaluation.outcomes import Outcome
from r2graph.evaluation.run import evaluate
from r2graph.evaluation.setup import Setup
from r2graph.router import load_parent, load_router
from tests.fakes import echo, pool_of
from tests.test_cli import POOL
from tests.test_router import CARD, directory
from tests.tiny_models import write_babbler, write_parrot
from training.curves import frontier, learning, names

N = 200


def done(
    method: str,
    n_right: int,
    cost: float | Callable[[int], float],
    *,
    n: int = N,
    benchmark: str = "arith",
    order: int = 1,
) -> list[Outcome]:
    """`n` outcomes, `n_right` of them right and spread out; the pool costs half of `cost`."""
    dollars = cost if callable(cost) else lambda _: cost
    return [
        Outcome(
            benchmark=benchmark,
            method=method,
            query=str(i),
            right=(i * 7 * order + order) % n < n_right,
            pool_usd=Decimal(dollars(i)) / 2,
            net_usd=Decimal(dollars(i)),
            calls=1,
            cpu_s=0.0,
        )
        for i in range(n)
    ]


def found(outcomes: Sequence[Outcome], quality: float = 0.9) -> dict[tuple[str, str, str], Gain]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gained = gains(curves(outcomes, quality), quality)
    return {(gain.family, gain.cost, gain.at): gain for gain in gained}


def at_the_top(outcomes: Sequence[Outcome], family: str = "rl", cost: str = "net") -> Gain:
    return found(outcomes)[family, cost, "sft@0.9"]


SFT = [*done("sft@0.5", 100, 1.0), *done("sft@0.9", 180, 5.0)]


# What an accuracy costs


def costs(levels: list[float], accuracy: list[float], cost: list[float]) -> list[float]:
    return list(cost_at(*(np.array([row]) for row in (levels, accuracy, cost)))[0])


def test_between_two_points_a_cost_is_that_of_mixing_them() -> None:
    assert costs([0.6, 0.7, 0.8], [0.5, 0.7, 0.9], [1, 2, 10]) == pytest.approx([1.5, 2, 6])


def test_a_point_that_costs_more_than_a_mixture_is_not_used() -> None:
    assert costs([0.7], [0.5, 0.7, 0.9], [1, 8, 5]) == pytest.approx([3])


def test_a_more_accurate_point_will_do_and_a_less_accurate_one_will_not() -> None:
    assert costs([0.1, 0.5, 0.6], [0.5, 0.9], [3, 2]) == pytest.approx([2, 2, 2])
    assert costs([0.91], [0.5, 0.9], [1, 2]) == [np.inf]


def test_an_accuracy_that_differs_by_rounding_is_reached() -> None:
    assert costs([0.1 + 0.2], [0.3], [4]) == [4]


# Savings


def test_a_router_that_costs_half_query_by_query_saves_half_without_any_doubt() -> None:
    dear = done("sft@0.9", 150, lambda i: 1.0 + i)
    half = done("rl@0.9", 150, lambda i: (1.0 + i) / 2)
    for cost in ("net", "pool"):
        saving = at_the_top([*dear, *half], cost=cost).saving
        assert (saving.value, saving.low, saving.high) == pytest.approx((0.5, 0.5, 0.5))


def test_the_same_router_saves_nothing_and_neither_do_three_of_it() -> None:
    outcomes = list(SFT)
    for family in ("rl", "router:a", "router:b", "router:c"):
        outcomes += [*done(f"{family}@0.5", 100, 1.0), *done(f"{family}@0.9", 180, 5.0)]
    gained = found(outcomes)
    families = {"rl", "router:a", "router:b", "router:c", "mean of 3 routers"}
    assert {family for family, _, _ in gained} == families
    for gain in gained.values():
        saving = gain.saving
        assert (saving.value, saving.low, saving.high) == pytest.approx((0, 0, 0))


def test_savings_are_read_off_the_frontier_at_the_accuracies_of_the_parent() -> None:
    gained = found([*SFT, *done("rl@0.5", 80, 1.0), *done("rl@0.9", 200, 4.0)])
    # On the line from (.4, 1) to (1, 4), .5 costs 1.5 and .9 costs 3.5.
    assert gained["rl", "net", "sft@0.9"].saving.value == pytest.approx(1 - 3.5 / 5)
    mean = gained["rl", "net", "2 of 2 qualities"].saving.value
    assert mean == pytest.approx(((1 - 1.5) + (1 - 3.5 / 5)) / 2)


def test_cheap_and_wrong_is_no_saving() -> None:
    gained = found([*SFT, *done("rl@0.5", 20, 0.1), *done("rl@0.9", 120, 1.0)])
    top = gained["rl", "net", "sft@0.9"].saving
    assert (top.value, top.low, top.high) == (-np.inf, -np.inf, -np.inf)
    mean = gained["rl", "net", "1 of 2 qualities"].saving.value
    assert mean == pytest.approx(1 - (0.1 + 0.9 * 0.8))


def test_an_accuracy_that_may_be_missed_leaves_the_saving_open_below() -> None:
    missed = [*SFT, *done("rl@0.9", 182, 4.0, order=3)]
    saving = at_the_top(missed).saving
    assert saving.value == pytest.approx(0.2)
    assert saving.low == -np.inf


def test_the_gap_to_the_oracle_is_what_it_costs_less() -> None:
    outcomes = [*SFT, *done("rl@0.9", 180, 4.0), *done("oracle", 190, 1.0)]
    closed = at_the_top(outcomes).gap_closed
    assert closed is not None
    assert (closed.value, closed.low, closed.high) == pytest.approx((0.25, 0.25, 0.25))
    assert at_the_top(outcomes[:-N]).gap_closed is None
    dear = at_the_top([*outcomes[:-N], *done("oracle", 190, 6.0)]).gap_closed
    assert dear is not None
    assert np.isnan(dear.value)


def test_a_mean_of_routers_is_at_the_qualities_that_all_have() -> None:
    outcomes = [
        *SFT,
        *done("router:a@0.5", 100, 1.0),
        *done("router:a@0.9", 180, 3.0),
        *done("router:b/c-d@0.9", 180, 4.0),
    ]
    together = curves(outcomes, 0.9)["mean of 2 routers"]
    assert list(together) == [0.9]
    assert together[0.9][0] == pytest.approx([0.9, 3.5, 1.75])
    assert at_the_top(outcomes, "mean of 2 routers").saving.value == pytest.approx(0.3)


def test_without_the_parent_nothing_is_compared() -> None:
    assert gains(curves(done("rl@0.9", 100, 1.0), 0.9), 0.9) == []


# Queries and benchmarks


def test_benchmarks_weigh_the_same_and_are_drawn_from_apart() -> None:
    outcomes = [*done("rl", 200, 1.0), *done("rl", 0, 3.0, n=10, benchmark="geo")]
    means = curves(outcomes, 0.9)["rl"][0.9]
    assert means[0] == pytest.approx([0.5, 2.0, 1.0])
    assert np.ptp(means, axis=0) == pytest.approx([0, 0, 0])  # drawn together it would vary


def test_resamples_vary_as_the_mean_does() -> None:
    means = curves(done("rl", 100, 1.0), 0.9)["rl"][0.9]
    assert means[1:, 0].std() == pytest.approx((0.25 / N) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    "other",
    [done("rl", 1, 1.0, n=9), done("rl", 1, 1.0, benchmark="geo")],
    ids=["queries", "benchmark"],
)
def test_methods_that_did_other_queries_are_not_compared(other: list[Outcome]) -> None:
    with pytest.raises(ValueError, match="same queries"):
        curves([*SFT, *other], 0.9)


def test_points_are_what_was_measured_and_methods_without_a_router_have_no_quality() -> None:
    outcomes = [*done("sft@0.5", 100, 1.0), *done("rl", 180, 3.0), *done("plan-9", 190, 6.0)]
    shown = points(curves(outcomes, 0.7), outcomes)
    assert [(p.family, p.quality, p.n) for p in shown] == [
        ("sft", 0.5, N),
        ("rl", 0.7, N),
        ("plan-9", None, N),
    ]
    assert [(p.accuracy, p.net_usd, p.pool_usd) for p in shown] == [
        pytest.approx((0.5, 1.0, 0.5)),
        pytest.approx((0.9, 3.0, 1.5)),
        pytest.approx((0.95, 6.0, 3.0)),
    ]


# Names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sft", ("sft", None)),
        ("rl@0.5", ("rl", 0.5)),
        ("router@1", ("router", 1.0)),
        ("router:runs/seed-1/a@b/router@.5", ("router:runs/seed-1/a@b/router", 0.5)),
        ("router:runs/seed-1", ("router:runs/seed-1", None)),
        ("router:", None),
        ("router@much", None),
        ("plan-9", None),
        ("sft-2", None),
    ],
)
def test_a_method_names_its_router_and_its_quality(
    name: str, meant: tuple[str, float | None] | None
) -> None:
    assert routed(name) == meant


def test_all_qualities_of_a_router_are_its_ten_levels() -> None:
    chosen = chosen_methods("rl@all,router:a-b@all", pool_of(echo(), echo()))
    assert len(chosen) == 20
    assert (chosen[0], chosen[9], chosen[-1]) == ("rl@0.1", "rl@1", "router:a-b@1")
    assert routed(chosen[-1]) == ("router:a-b", 1.0)


# Parents


def test_a_parent_is_found_from_the_card_and_not_from_where_one_stands(tmp_path: Path) -> None:
    for name, more in (("sft", {"name": "first"}), ("rl", {"parent": "../sft"})):
        (tmp_path / name).mkdir()
        directory(tmp_path / name, **more)
    assert load_router(tmp_path / "rl").card.parent == "../sft"
    assert load_parent(tmp_path / "rl").card.name == "first"
    with pytest.raises(ConfigError, match="names no parent"):
        load_parent(tmp_path / "sft")


def test_a_parent_may_be_a_shipped_router(tmp_path: Path) -> None:
    assert load_parent(directory(tmp_path, parent="lab-sft")).card.name == "lab-sft"


def test_without_a_parent_sft_is_refused_before_the_first_call(tmp_path: Path) -> None:
    told: list[str] = []
    setup = Setup("lab", ("single-1", "sft@0.5"), router=str(directory(tmp_path)), limit=1)
    with pytest.raises(ConfigError, match="names no parent"):
        evaluate(setup, ["arith"], lambda _, method: told.append(method))
    with pytest.raises(ConfigError, match="no router"):
        evaluate(Setup("lab", ("sft",), limit=1), ["arith"], lambda _, method: None)
    assert not told


# The command and its drawings


def speaking(folder: Path, slot: str, **card: Any) -> Path:
    """A router that gives one step to a slot, whatever it is asked."""
    write_parrot(folder / "decomposer", "s1: walk")
    write_parrot(folder / "allocator", slot)
    (folder / "router.yaml").write_text(yaml.safe_dump(CARD | {"language": "tiny"} | card))
    return folder


def test_eval_sets_routers_against_their_parent_and_saves_the_points(tmp_path: Path) -> None:
    write_babbler(tmp_path / "small")
    write_parrot(tmp_path / "large", "walk")
    (tmp_path / "pool.yaml").write_text(POOL)
    speaking(tmp_path / "sft", "m1")  # its member fails the check: both are paid
    trained = speaking(tmp_path / "rl-1", "m9", name="trained", parent="../sft")
    methods = f"sft@0.5,sft@0.9,rl@0.5,rl,router:{trained}@0.9,single-2,oracle"
    done = CliRunner().invoke(
        app,
        [
            *("eval", "--pool", str(tmp_path / "pool.yaml"), "--router", str(trained)),
            *("--methods", methods, "--benchmarks", "arith,geo", "--limit", "2"),
            *("--frontier", str(tmp_path / "points.csv")),
        ],
    )
    assert done.exit_code == 0, done.output
    with (tmp_path / "points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["family", "quality", "n", "accuracy", "net_usd", "pool_usd"]
    assert [(row["family"], row["quality"], row["n"]) for row in rows] == [
        ("sft", "0.5", "4"),
        ("sft", "0.9", "4"),
        ("rl", "0.5", "4"),
        ("rl", "0.9", "4"),
        (f"router:{trained}", "0.9", "4"),
        ("single-2", "", "4"),
        ("oracle", "", "4"),
    ]
    cost = {(row["family"], row["quality"]): float(row["net_usd"]) for row in rows}
    assert cost["rl", "0.9"] == cost[f"router:{trained}", "0.9"] < cost["sft", "0.9"]
    assert "gap closed" in done.stdout


def test_frontiers_are_drawn_from_their_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "family,quality,n,accuracy,net_usd,pool_usd\n"
        "sft,0.5,9,0.5,1e-6,5e-7\nsft,0.9,9,0.9,5e-6,4e-6\noracle,,9,0.95,1e-6,9e-7\n"
    )
    net, pool = frontier([tmp_path / "a.csv"]).axes
    line, levels, mark = net.lines
    assert list(line.get_xdata()[[0, -1]]) == pytest.approx([1, 5])
    assert list(levels.get_ydata()) == [0.5, 0.9]
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([1], [0.95])
    assert [text.get_text() for text in net.get_legend().get_texts()] == ["sft"]
    assert list(pool.lines[0].get_xdata()[[0, -1]]) == pytest.approx([0.5, 4])


def test_a_learning_curve_has_a_line_for_each_seed_and_skips_what_was_not_logged(
    tmp_path: Path,
) -> None:
    logs = []
    for seed in (1, 2):
        log = tmp_path / f"seed-{seed}" / "trained" / "log.json"
        log.parent.mkdir(parents=True)
        steps = [{"step": at, "reward": at * seed, "entropy": 0.5} for at in (5, 10)]
        log.write_text(json.dumps([*steps, {"step": 10, "train_loss": 0.1}]))
        logs.append(log)
    reward, entropy = learning(logs).axes
    assert [line.get_label() for line in reward.lines] == ["seed-1", "seed-2"]
    assert [list(line.get_ydata()) for line in reward.lines] == [[5, 10], [10, 20]]
    assert list(entropy.lines[0].get_xdata()) == [5, 10]
    learning(logs).savefig(tmp_path / "learning.png")
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_what_differs() -> None:
    paths = [Path("rl/seed-1/r/log.json"), Path("rl/seed-2/r/log.json")]
    assert names(paths) == ["seed-1", "seed-2"]
    assert names(paths[:1]) == ["rl/seed-1/r"]
