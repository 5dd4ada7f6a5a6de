"""GRPO under `accelerate launch`, as on several cards."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file

from r2graph import load_pool, load_router
from r2graph.errors import ConfigError
from training import alternate
from training.grpo import asked, folder, made_once
from training.sharded import load_whole

ROOT = Path(__file__).parent.parent
FILES = ROOT / "training/configs/accelerate"
TWO_CPUS = FILES / "two_cpus.yaml"
SETTINGS = {
    "pool": "lab",
    "queries": {"arith": 6},
    "held_out": {"arith": 2},
    "allocator": {
        "steps": 3,
        "prompts": 2,
        "generations": 4,
        "max_completion_tokens": 16,
        "learning_rate": 1e-2,
        "temperature": 4.0,  # a router that is sure of itself learns nothing
        "lora": {"rank": 4, "alpha": 8},
    },
}
# Completions are greedy and weights stay as they are: the reward tells which prompts were drawn.
STILL = {"temperature": 1e-3, "learning_rate": 1e-12, "steps": 10, "lora": None}


def launched(out: Path, *options: str, script: tuple[str, ...] = (), **phase: Any) -> str:
    """What training told, with its files in `out`."""
    settings = SETTINGS | {"allocator": SETTINGS["allocator"] | phase}
    out.mkdir(parents=True)
    config = out / "mini.yaml"
    config.write_text(yaml.safe_dump(settings))
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options]
    given = ["--config", str(config), "--module", "allocator", "--out", str(out)]
    files = ["--outcomes", str(out / "outcomes.sqlite")]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launch, *(script or ("-m", "training.grpo")), *given, *files],
        cwd=ROOT,
        env=os.environ | quiet,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def logged(out: Path, *names: str) -> list[list[float]]:
    log = json.loads((out / "log.json").read_text())
    return [[entry[name] for name in names] for entry in log if "reward" in entry]


def changed(out: Path) -> set[str]:
    """The weights that training has changed, all others being there as they were."""
    before = load_file(folder(load_router("lab"), "allocator") / "model.safetensors")
    after = load_file(out / "model.safetensors")
    tied = after.pop("lm_head.weight", None)  # FSDP writes the embeddings twice
    assert tied is None or (tied == after["model.embed_tokens.weight"]).all()
    assert {name: each.shape for name, each in after.items()} == {
        name: each.shape for name, each in before.items()
    }
    return {name for name in before if (before[name] != after[name]).any()}


ADAPTED = {f"model.layers.{layer}.self_attn.{at}_proj.weight" for layer in range(3) for at in "qv"}


@pytest.mark.slow
def test_two_processes_train_adapters_and_write_one_whole_model(tmp_path: Path) -> None:
    told = launched(tmp_path / "out", "--config_file", str(TWO_CPUS))
    assert told.count("rollouts: ") == 2
    assert changed(tmp_path / "out") == ADAPTED
    assert logged(tmp_path / "out", "reward")


@pytest.mark.slow
def test_two_processes_draw_the_prompts_that_one_draws(tmp_path: Path) -> None:
    for processes in ("1", "2"):
        options = ("--config_file", str(TWO_CPUS), "--num_processes", processes)
        told = launched(tmp_path / processes, *options, **STILL)
        assert told.count("rollouts: ") == int(processes)
    one, two = (logged(tmp_path / n, "reward", "num_tokens") for n in ("1", "2"))
    assert len(one) == 2
    assert two == [pytest.approx(each) for each in one]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [SETTINGS["allocator"]["lora"], None])
def test_a_model_in_two_parts_is_trained_and_written_whole(
    tmp_path: Path, lora: dict[str, int] | None
) -> None:
    options = ("--config_file", str(FILES / "fsdp.yaml"), "--num_processes", "2")
    script = (str(ROOT / "tests/fsdp_on_cpus.py"),)
    told = launched(tmp_path / "out", *options, "--mixed_precision", "no", script=script, lora=lora)
    assert told.count("rollouts: ") == 2
    found = changed(tmp_path / "out")
    assert (found == ADAPTED) if lora else (found > ADAPTED)
    [[reward]] = logged(tmp_path / "out", "reward")
    assert reward > 0.5  # the models that rollouts ask are whole, in both processes


WANTED = {  # processes, distributed type, mixed precision, whether on CPUs
    "one_gpu": (1, DistributedType.NO, "bf16", False),
    "fsdp": (8, DistributedType.FSDP, "bf16", False),
    "zero3": (8, DistributedType.DEEPSPEED, "bf16", False),
    "two_cpus": (2, DistributedType.MULTI_GPU, "no", True),
}


def parsed(file: Path) -> Any:
    """What `accelerate launch` makes of a file."""
    arguments = launch_command_parser().parse_args(["--config_file", str(file), "script.py"])
    return _validate_launch_command(arguments)[0]


def test_every_file_of_accelerate_says_what_its_name_does() -> None:
    for file in FILES.iterdir():
        found = load_config_from_file(str(file))
        assert isinstance(found, ClusterConfig)
        says = (found.num_processes, found.distributed_type, found.mixed_precision, found.use_cpu)
        assert says == WANTED[file.stem]
        known = vars(launch_command_parser().parse_args(["script.py"]))
        assert {*found.fsdp_config, *found.deepspeed_config} <= known.keys(), file


def test_fsdp_deals_out_a_model_and_saves_it_whole() -> None:
    with patch_environment(**prepare_multi_gpu_env(parsed(FILES / "fsdp.yaml"))):
        plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"


def test_zero_3_deals_out_a_model_and_saves_it_whole() -> None:
    arguments = parsed(FILES / "zero3.yaml")
    arguments.deepspeed_fields_from_accelerate_config = ""  # as its launcher adds
    _, environment = prepare_deepspeed_cmd_env(arguments)
    told = {name.removeprefix("ACCELERATE_DEEPSPEED_"): at for name, at in environment.items()}
    assert (told["ZERO_STAGE"], told["ZERO3_SAVE_16BIT_MODEL"]) == ("3", "true")
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_several_machines_are_refused_for_they_share_no_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("accelerate.PartialState", Elsewhere)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match="a file of one machine"):
        made_once(list, Path("outcomes.sqlite"))
    with pytest.raises(ConfigError, match="need an outcome cache in common"):
        made_once(list, None)


class Elsewhere:
    """The state of one of sixteen processes."""

    num_processes = 16

    def __init__(self, **_: Any) -> None: ...


def test_models_that_rollouts_ask_are_there_before_training_begins() -> None:
    pool, router = load_pool("lab"), load_router("lab")
    models = [*pool.members, *asked(router)]
    load_whole(models)
    assert all(model.chat._engines for model in models)
    assert not router.decomposer.model.chat._engines  # whose plans are given


def test_rounds_are_refused_to_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sys.argv", ["alternate", "--config", "training/configs/lab_grpo.yaml"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match="launch each phase"):
        alternate.main()
