"""A router on pools that it was not trained on."""

import json
import shutil
from pathlib import Path

from r2graph import load_pool, load_router
from r2graph.lab import benchmarks
from training.grpo import folder
from training.unseen import added, result, strongest


def test_a_member_is_added_at_the_rank_of_its_size_and_asked(tmp_path: Path) -> None:
    router, between = load_router("lab"), tmp_path / "between"
    shutil.copytree(folder(router, "decomposer"), between)
    (between / "training.json").write_text(json.dumps({"parameters": 42_440}))
    pool = added(load_pool("lab"), between)
    assert pool.names == ("m1", "m2", "m3", "m4", "between", "m5", "m6", "m7", "m8", "m9")
    assert str(pool["between"].price.output_per_mtok) == "0.042440"


def test_a_router_serves_a_pool_with_two_members_gone_and_is_cheaper_than_its_strongest() -> None:
    pool, router = load_pool("lab").without("m4", "m6"), load_router("lab")
    tasks = benchmarks.tasks("scan-simple", 6)
    ours = result(pool, router, tasks, 9, None)
    theirs = result(pool, strongest(router), tasks, 9, None)
    assert ours.accuracy == theirs.accuracy == 1
    assert 0 < ours.net_usd < theirs.net_usd / 2
