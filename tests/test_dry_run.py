"""The dry run of training: what it checks, what it finds wrong, and what its estimates rest on."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open
from trl.scripts.vllm_serve import make_parser

from r2graph import load_pool, load_router
from r2graph.errors import ConfigError
from r2graph.plan import parse_text
from r2graph.pricing import Price
from training.dry_run.launch import Launch
from training.dry_run.launch import read as read_launch
from training.dry_run.memory import KNOWN, WIDE, estimate, fine_tuning, shape_of
from training.dry_run.report import Machine, dry_run
from training.dry_run.reward_probe import check_columns, made_up_row, rewards
from training.dry_run.servers import policy_server, pool_servers
from training.dry_run.sft_check import check
from training.grpo import SERVER_TIMEOUT_S, config
from training.new_router import write
from training.query_files import draw, read
from training.settings import Base, Lora, Phase, Settings, load_settings

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "training/configs/paper.yaml"
SINGLE = ROOT / "training/configs/single_gpu.yaml"
ACCELERATE = ROOT / "training/configs/accelerate"
MINE = Path("mine.yaml")
ARTEFACTS = ROOT / "r2graph/lab/artefacts"
QUERIES = [
    {"query": "Who wrote the novel Emma?", "gold": "Jane Austen"},
    {"query": "2 + 3 * 4", "gold": "14", "plan": "s1: 3 * 4\ns2: 2 + {s1}"},
]
PHASE = Phase(steps=10, prompts=4, generations=4, max_completion_tokens=32, learning_rate=1e-4)
# As published with the models.
PARAMETERS = {
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
}


FSDP_1 = "distributed_type: FSDP\nnum_processes: 8\nfsdp_config: "


@pytest.fixture(autouse=True)
def _empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens to be on the machine decides nothing; nothing runs where the tests run."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sft_row(prompt: str, completion: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }


def lab(tmp_path: Path, **changes: Any) -> Settings:
    """Settings of the lab's router on two queries of arith."""
    queries = lines(tmp_path / "queries.jsonl", QUERIES[1:])
    held_out = lines(tmp_path / "held-out.jsonl", [{"query": "1 + 1", "gold": "2"}])
    fields = {"pool": "lab", "queries": queries, "held_out": held_out, "allocator": PHASE}
    return Settings(**fields | changes)


def test_the_papers_settings_are_told_of_without_weights_or_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("VLLM_BASE_URL", raising=False)
    launch = read_launch(ACCELERATE / "fsdp.yaml")
    told = dry_run(load_settings(PAPER), PAPER, on=Machine(6, launch=launch))
    assert "paper: 9 models, qwen2.5-0.5b to gpt-4o" in told
    assert "from Qwen/Qwen2.5-7B-Instruct (7,615,616,512 parameters)" in told
    assert len(re.findall(r"right 0\.\d\d > wrong 0\.00 > invalid -1\.00", told)) == 2
    assert "192 completions a step = 6 processes x 4 times x 8" in told
    assert "runs/paper/queries.jsonl: graded queries" in told
    assert "OPENAI_API_KEY: the key of gpt-4o" in told
    assert "Qwen/Qwen2.5-72B-Instruct --host 127.0.0.1 --port 8007 --tensor-parallel-size 4" in told
    assert f"accelerate launch --config_file {launch.file} --num_processes 6 -m" in told
    [server] = re.findall("CUDA_VISIBLE_DEVICES=6,7 trl vllm-serve (.*router/allocator.*)", told)
    assert told.count("fits a card of 80 GB, if prompts have 256 tokens: there are no queries") == 2
    assert "at most 147,456 tokens" in told  # 192 completions of 256 + 512
    assert re.search("# the pool's servers: on other machines, or cards .*\n  vllm serve", told)
    parser = make_parser()
    [serves] = parser.parse_args_and_config(shlex.split(server))[:1]
    assert (serves.model, serves.host, serves.port, serves.tensor_parallel_size) == (
        "runs/paper/router/allocator",
        "127.0.0.1",
        8100,
        2,
    )


@pytest.mark.parametrize("processes", [6, 8])
def test_the_papers_batches_come_out_on_six_and_on_eight_cards(processes: int) -> None:
    settings = load_settings(PAPER)
    for phase in (settings.decomposer, settings.allocator):
        assert phase is not None
        assert phase.batch(processes)


def test_memory_is_split_as_the_accelerate_file_says() -> None:
    def told(launch: Launch | None, processes: int = 8) -> list[str]:
        report = dry_run(load_settings(PAPER), PAPER, on=Machine(processes, 80, launch))
        return re.findall("memory +about (.*?): (fits|does NOT fit)", report)

    by_fsdp, by_zero = (told(read_launch(ACCELERATE / f"{at}.yaml")) for at in ("fsdp", "zero3"))
    assert all("split by FSDP" in memory and fits == "fits" for memory, fits in by_fsdp)
    assert [(memory.replace("FSDP", "ZeRO-3"), fits) for memory, fits in by_fsdp] == by_zero
    whole = Launch(ACCELERATE / "fsdp.yaml", 8, None)
    assert {fits for _, fits in told(whole)} == {"does NOT fit"}
    assert all("if split by FSDP" in memory and fits == "fits" for memory, fits in told(None))
    alone = told(read_launch(ACCELERATE / "fsdp.yaml"), processes=1)
    assert {fits for _, fits in alone} == {"does NOT fit"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("distributed_type: FSDP\nnum_process: 8\n", "accelerate does not read"),
        ("distributed_type: FSDP\nnum_processes: 16\nnum_machines: 2\n", "several machines"),
        (FSDP_1 + "{fsdp_version: 1, fsdp_reshard_after_forward: FULL_SHARD}", "fsdp_version to 2"),
        (FSDP_1 + "{fsdp_sharding_strategy: NO_SHARD}", "fsdp_reshard_after_forward to true"),
    ],
)
def test_a_file_that_is_not_to_be_read_is_an_error(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_launch(file)


def test_a_model_that_is_whole_in_each_process_is_not_split(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    for kind in (
        "MULTI_GPU",
        "FSDP\nfsdp_config: {fsdp_version: 2, fsdp_reshard_after_forward: false}",
        "DEEPSPEED\ndeepspeed_config: {zero_stage: 2}",
    ):
        file.write_text(f"num_processes: 4\ndistributed_type: {kind}\n")
        assert read_launch(file) == Launch(file, 4, None)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_the_server_of_a_policy_is_where_training_looks_for_it(tmp_path: Path) -> None:
    phase = PHASE.model_copy(
        update={"vllm": "server", "vllm_url": "http://10.0.0.7:8123", "vllm_group_port": 51217}
    )
    told = config(phase, tmp_path, seed=1)
    assert (told.use_vllm, told.vllm_mode) == (True, "server")
    assert told.vllm_server_base_url == "http://10.0.0.7:8123"
    assert (told.vllm_group_port, told.vllm_server_timeout) == (51217, SERVER_TIMEOUT_S)
    assert "--host 10.0.0.7 --port 8123" in policy_server(phase, tmp_path, processes=2)


def test_the_settings_for_one_card_fit_it() -> None:
    told = dry_run(load_settings(SINGLE), SINGLE, on=Machine(1, 24))
    assert told.count("fits a card of 24 GB") == 3  # fine-tuning and both phases
    assert "--config_file" not in told
    assert "python -m training.alternate --config" in told


def test_a_router_that_is_there_renders_prompts_by_its_own_template(tmp_path: Path) -> None:
    told = dry_run(lab(tmp_path, decomposer=PHASE), MINE)
    assert "| <s>plan: 2 + 3 * 4<sep>" in told
    assert re.search(r"\| <s>q\d+\n +\| s1: 3 \* 4\n +\| s2: 2 \+ \{s1\}<sep>", told)
    assert "everything is there" in told
    assert "no queries yet" not in told
    assert "the pool's servers" not in told


def test_a_completion_that_would_be_cut_off_is_an_error(tmp_path: Path) -> None:
    short = PHASE.model_copy(update={"max_completion_tokens": 3})
    with pytest.raises(ConfigError, match=r"allocator: a right completion has 5 tokens.* raise it"):
        dry_run(lab(tmp_path, allocator=short), MINE)


def test_a_prompt_that_leaves_no_room_is_an_error(tmp_path: Path) -> None:
    greedy = PHASE.model_copy(update={"max_completion_tokens": 255})
    with pytest.raises(ConfigError, match="context of 256: leave long queries out"):
        dry_run(lab(tmp_path, allocator=greedy), MINE)


def test_batches_that_do_not_come_out_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="4 prompts a step are not to be split by 3"):
        dry_run(lab(tmp_path), MINE, on=Machine(3))
    wide = PHASE.model_copy(update={"accumulate": 8})
    with pytest.raises(ConfigError, match=r"4 completions a process.* change `accumulate`"):
        wide.batch(4)
    assert (wide.batch(), PHASE.batch(2)) == (2, 8)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"query": "Who wrote Emma?"}, "line 1: gold: Field required"),
        ({"query": "?", "gold": "1", "answer": "1"}, "line 1: answer is an unknown key"),
        ({"query": "?", "gold": "1", "plan": "s1: {s2}"}, "line 1: plan: "),
    ],
)
def test_a_line_of_queries_that_does_not_read_is_named(
    tmp_path: Path, row: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        read(lines(tmp_path / "queries.jsonl", [row]))


def test_queries_of_a_file_are_drawn_without_those_held_out(tmp_path: Path) -> None:
    file = lines(tmp_path / "queries.jsonl", [*QUERIES, *QUERIES])
    whole, planned = read(file)
    assert [step.text for step in whole.plan.subtasks] == [QUERIES[0]["query"]]
    assert planned.plan == parse_text(QUERIES[1]["plan"])
    assert [task.query for task in draw(file, 1, {QUERIES[0]["query"]})] == [QUERIES[1]["query"]]
    with pytest.raises(ConfigError, match="no query that is not held out"):
        draw(file, 1, {row["query"] for row in QUERIES})


def test_rows_of_fine_tuning_are_checked_as_plans_and_slots(tmp_path: Path) -> None:
    good = sft_row("q7\ns1: 2 * 3\ns2: {s1} + 1", "m1 q7 m3 q7")
    assert check("allocator", lines(tmp_path / "rows.jsonl", [good]))
    with pytest.raises(ConfigError, match="line 2: the allocator did not give one model"):
        check(
            "allocator", lines(tmp_path / "rows.jsonl", [good, sft_row("q7\ns1: 2 * 3", "m1 m1")])
        )
    with pytest.raises(ConfigError, match="line 1: "):
        check("decomposer", lines(tmp_path / "rows.jsonl", [good]))
    with pytest.raises(ConfigError, match="line 1: query is an unknown key"):
        check("decomposer", lines(tmp_path / "rows.jsonl", QUERIES[:1]))


def test_a_base_without_rows_to_fine_tune_it_on_is_an_error(tmp_path: Path) -> None:
    settings = yaml.safe_load(SINGLE.read_text())
    del settings["sft"]["allocator"]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match="`base` needs `sft`, the rows of both modules"):
        load_settings(tmp_path / "settings.yaml")


@pytest.mark.parametrize("pool", ["lab", "paper", "openai"])
def test_rewards_are_ordered_on_the_prices_of_any_pool(pool: str) -> None:
    for module in ("decomposer", "allocator"):
        right, wrong, invalid = rewards(module, load_pool(pool)).values()
        assert right > wrong > invalid


def test_a_pool_of_one_leaves_nothing_to_choose() -> None:
    with pytest.raises(ConfigError, match="has one member"):
        rewards("allocator", load_pool("lab").without(*(f"m{n}" for n in range(2, 10))))


def test_a_column_that_the_reward_misses_is_named() -> None:
    row = made_up_row("allocator")
    del row["gold"]
    with pytest.raises(ConfigError, match="the data of the allocator has no column gold"):
        check_columns("allocator", row)


@pytest.mark.parametrize(("model", "parameters"), PARAMETERS.items())
def test_parameters_of_known_models_are_those_published(model: str, parameters: int) -> None:
    assert KNOWN[model].parameters == parameters


@pytest.mark.parametrize("model", ["m1", "m9", "router-sft/decomposer"])
def test_parameters_of_a_directory_are_those_in_its_files(model: str) -> None:
    with safe_open(ARTEFACTS / model / "model.safetensors", "np") as file:
        held = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 - no dict
    shape = shape_of(str(ARTEFACTS / model))
    assert shape is not None
    assert shape.parameters == held


def test_memory_is_16_bytes_a_trained_parameter_and_less_with_adapters() -> None:
    shape = KNOWN["Qwen/Qwen2.5-7B-Instruct"]
    given = {"processes": 1, "prompt_tokens": 64, "router_bytes": 0.0, "card_bytes": 80e9}
    full = estimate(shape, PHASE, **given)
    assert sum(full.state.values()) == 16 * shape.parameters
    assert sum(fine_tuning(shape, 4, 256).state.values()) == 16 * shape.parameters
    assert full.total(2) == full.total() - 8 * shape.parameters
    adapted = estimate(shape, PHASE.model_copy(update={"lora": Lora(rank=8)}), **given)
    adapters = 28 * 8 * ((3_584 + 3_584) + (3_584 + 512))  # query and value of each layer
    assert sum(adapted.state.values()) == WIDE * shape.parameters + 16 * adapters
    anchored = estimate(shape, PHASE.model_copy(update={"beta": 0.1}), **given)
    assert anchored.state["reference"] == WIDE * shape.parameters


def test_members_that_share_a_url_get_ports_of_their_own_and_word_of_a_gateway() -> None:
    member = {"price": {"input_per_mtok": 1, "output_per_mtok": 1}, "tags": ["local"]}
    urls = {"a": "http://127.0.0.1:8002/v1", "b": "http://127.0.0.1:8002/v1", "c": "http://h:9/v1"}
    members = [
        member | {"name": name, "model": f"openai:org/{name}", "model_kwargs": {"base_url": url}}
        for name, url in urls.items()
    ]
    a, b, gateway, c = pool_servers(load_pool({"name": "mine", "members": members}), 80e9)
    assert a == "vllm serve org/a --host 127.0.0.1 --port 8001"
    assert b == "vllm serve org/b --host 127.0.0.1 --port 8003"
    assert "http://127.0.0.1:8002/v1" in gateway
    assert c == "vllm serve org/c --host 127.0.0.1 --port 9"


def test_a_card_makes_a_router_of_two_fine_tuned_modules(tmp_path: Path) -> None:
    rows = lines(tmp_path / "rows.jsonl", [sft_row("plan: ?", "s1: ?")])
    for module in ("decomposer", "allocator"):
        folder = tmp_path / "router" / module
        folder.mkdir(parents=True)
        source = ARTEFACTS / "router-sft" / module
        (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    price = Price(input_per_mtok=1, output_per_mtok=2)
    base = Base(model="Qwen/Qwen2.5-0.5B-Instruct", price=price)
    settings = lab(tmp_path, base=base, sft={"decomposer": rows, "allocator": rows}, pool="paper")
    made = write(settings, tmp_path / "router", "mine")
    assert made.card == load_router(tmp_path / "router").card
    assert (made.card.language, made.card.prices.allocator) == ("any", price)
    with pytest.raises(ConfigError, match="needs an entry `base`"):
        write(lab(tmp_path), tmp_path / "router", "mine")
