"""The report of a dry run: what would be trained, on what, for how long, and what is missing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from r2graph import ModelPool, load_pool, load_router
from r2graph.allocate import slots_text
from r2graph.errors import ConfigError
from r2graph.lab.task import Task
from r2graph.plan import render_text
from r2graph.pool import N_SLOTS
from r2graph.router import MODULES
from training.dry_run.launch import FSDP_FILE, Launch
from training.dry_run.memory import GB, Memory, estimate, fine_tuning
from training.dry_run.reward_probe import TASK, check_columns, rewards
from training.dry_run.servers import policy_server, pool_servers
from training.dry_run.sft_check import SftRow, check
from training.dry_run.weights import Weights, resident_bytes
from training.grpo import HELD_OUT_SEED, RL_SEED, folder
from training.planned import Planned
from training.query_files import draw
from training.rl_data import Row, allocator_rows, decomposer_rows
from training.settings import Module, Phase, Queries, Settings

SFT_BATCH, SFT_TOKENS = 4, 1024  # rows of a process at once, and tokens of a row
ASSUMED_TOKENS = 256  # of a prompt, as long as there are no queries
GRADED = 'graded queries, {"query": "…", "gold": "…"} a line'
MAKERS: dict[Module, str] = {
    "decomposer": "rows of `training.decompositions` or `training.trace_data`",
    "allocator": "rows of `training.trace_data`",
}


@dataclass(frozen=True)
class Machine:
    """What the run is to run on."""

    processes: int = 1
    """One for each card."""
    card_gb: float = 80.0
    """10^9 bytes."""
    launch: Launch | None = None
    """The file that the run is to be launched with."""

    @property
    def split_by(self) -> str | None:
        """What deals the model out among the processes; without a file, FSDP can."""
        if self.processes == 1:
            return None
        return self.launch.split_by if self.launch else "FSDP"


@dataclass(frozen=True)
class Data:
    """What the settings name, as far as it is there; the made-up query stands in for the rest."""

    tasks: Sequence[Task]
    sft: Mapping[Module, Sequence[SftRow]]
    missing: Sequence[str]

    @property
    def made_up(self) -> bool:
        return list(self.tasks) == [TASK]


def dry_run(
    settings: Settings, config: Path, router: str | None = None, on: Machine | None = None
) -> str:
    """The report on the settings of a file; raises `ConfigError` for what would not work.

    `router` is a router to start from; without one, modules start from the settings' base, or else
    from the lab's router.
    """
    on, pool = on or Machine(), load_pool(settings.pool)
    start, given = starts(settings, pool, router), data(settings, seed=1)
    lines = [f"{config.stem}: {len(pool)} models, {pool.names[0]} to {pool.names[-1]}"]
    frozen = start["allocator"].bytes + resident_bytes(pool)
    split = False
    if router is None and settings.base is not None:
        told, memory = about_sft(start, given, on)
        lines += ["", *told]
        split |= memory is not None and memory.total() > on.card_gb * GB
    for module, phase in phases(settings):
        told, memory = about(module, phase, start[module], given, pool, on, frozen)
        lines += ["", *told]
        split |= memory is not None and memory.total() > on.card_gb * GB
    missing = [*given.missing, *missing_keys(pool)]
    lines += ["", "not there yet:" if missing else "everything is there", *indented(missing)]
    lines += ["", "commands:"]
    lines += indented(commands(settings, config, router, pool, on, split))
    return "\n".join(lines)


def phases(settings: Settings) -> Iterator[tuple[Module, Phase]]:
    for module in MODULES:
        if phase := getattr(settings, module):
            yield module, phase


def starts(settings: Settings, pool: ModelPool, router: str | None) -> dict[Module, Weights]:
    """What each module starts from."""
    if router is None and settings.base is not None:
        return {module: Weights(settings.base.model) for module in MODULES}
    loaded = load_router(router or "lab")
    loaded.admit(pool)
    return {module: Weights(str(folder(loaded, module))) for module in MODULES}


def data(settings: Settings, seed: int) -> Data:
    """Everything that the settings name; raises `ConfigError` for a file that is wrong."""
    missing: list[str] = []

    def there(source: Queries, what: str) -> bool:
        found = isinstance(source, dict) or source.exists()
        if not found:
            missing.append(f"{source}: {what}")
        return found

    held_out: set[str] = set()
    if there(settings.held_out, GRADED):
        held_out = {task.query for task in draw(settings.held_out, HELD_OUT_SEED)}
    tasks = [TASK]
    if there(settings.queries, GRADED):
        tasks = draw(settings.queries, RL_SEED + seed, held_out)
    sft = {
        module: check(module, path)
        for module, path in settings.sft.items()
        if there(path, MAKERS[module])
    }
    return Data(tasks, sft, missing)


def missing_keys(pool: ModelPool) -> list[str]:
    """The environment variables that members need and that are not set."""
    names = []
    for spec in pool.members:
        variable = spec.key_variable
        if variable and not os.environ.get(variable):
            names.append(f"{variable}: the key of {spec.name}, in the environment")
    return names


def prompts(module: Module, tasks: Sequence[Task], seed: int) -> list[Row]:
    """The rows of a module, those of the allocator with the plans of the tasks."""
    if module == "decomposer":
        return decomposer_rows(tasks)
    return allocator_rows([Planned(task, task.plan, _steps(task)) for task in tasks], seed)


def _steps(task: Task) -> tuple[tuple[str, str], ...]:
    if task.outputs:
        return tuple((prompt, output) for _, prompt, output in task.steps())
    return tuple((step.text, "") for step in task.plan.subtasks)


def longest(module: Module, given: Data, at: Weights) -> int:
    """Tokens of the longest right completion that is known, its end included."""
    texts = {row.answered for row in given.sft.get(module, ())}
    for task in given.tasks:
        slots = slots_text([(N_SLOTS, 9)] * len(task.plan.subtasks))
        texts.add(render_text(task.plan) if module == "decomposer" else slots)
    return 1 + max(map(at.tokens, texts))


def about(
    module: Module,
    phase: Phase,
    at: Weights,
    given: Data,
    pool: ModelPool,
    on: Machine,
    frozen: float,
) -> tuple[list[str], Memory | None]:
    """Lines on one module, and the memory of a process; `frozen` is bytes that rollouts need."""
    rows = prompts(module, given.tasks, seed=1)
    check_columns(module, rows[0])
    texts = [at.rendered(row) for row in rows]
    shown = max(map(at.tokens, texts))
    check_lengths(module, phase, longest(module, given, at), shown, at)
    prompt = assumed_tokens(phase, at) if given.made_up else shown
    note = f", if prompts have {prompt} tokens: there are no queries yet" if given.made_up else ""
    ordered = " > ".join(f"{role} {value:.2f}" for role, value in rewards(module, pool).items())
    size = f"{at.shape.parameters:,} parameters" if at.shape else "of unknown size"
    how = "by its chat template" if at.tokenizer else "no tokenizer here: the bare message"
    memory = at.shape and estimate(
        at.shape,
        phase,
        processes=on.processes,
        prompt_tokens=prompt,
        router_bytes=frozen,
        card_bytes=on.card_gb * GB,
    )
    lines = [
        f"{module}, from {at.source} ({size})",
        f"  columns  {', '.join(rows[0])}",
        f"  prompt   {how}, at most {shown} tokens{'' if at.tokenizer else ' or so'}; "
        f"{'one made up' if given.made_up else 'the first'}:",
        *(f"           | {line}" for line in texts[0].splitlines()),
        f"  reward   {ordered}",
        *arithmetic(phase, prompt, on),
        *([] if given.made_up else [epochs(phase, len(rows))]),
        *memory_lines(memory, on, note),
    ]
    return lines, memory


def assumed_tokens(phase: Phase, at: Weights) -> int:
    """Tokens of a prompt that nobody has seen yet, with room for its completion."""
    room = at.shape.context - phase.max_completion_tokens if at.shape else ASSUMED_TOKENS
    return min(ASSUMED_TOKENS, room)


def about_sft(
    start: Mapping[Module, Weights], given: Data, on: Machine
) -> tuple[list[str], Memory | None]:
    """Lines on the fine-tuning of the base, and the memory of a process."""
    at = start["decomposer"]
    memory = at.shape and fine_tuning(at.shape, SFT_BATCH, SFT_TOKENS)
    lines = [f"fine-tuning of {at.source}"]
    for module, rows in given.sft.items():
        most = max(at.tokens(row.asked) + at.tokens(row.answered) for row in rows)
        lines.append(f"  data     {module}: {len(rows):,} rows of at most {most} tokens or so")
        if at.tokenizer and most > SFT_TOKENS:
            raise ConfigError(
                f"{module}: a row for fine-tuning has {most} tokens and {SFT_TOKENS} is the most "
                "that is planned for: leave long rows out"
            )
    lines.append(f"  batch    {on.processes} processes x {SFT_BATCH} rows")
    lines += memory_lines(memory, on)
    return lines, memory


def check_lengths(module: Module, phase: Phase, right: int, prompt: int, at: Weights) -> None:
    """Raise `ConfigError` if completions would be cut off, or prompts leave them no room."""
    if at.tokenizer is None:  # no error on a guess
        return
    limit = phase.max_completion_tokens
    if right > limit:
        raise ConfigError(
            f"{module}: a right completion has {right} tokens, and max_completion_tokens is "
            f"{limit}: raise it, for what is cut off counts as invalid"
        )
    if at.shape and prompt + limit > at.shape.context:
        raise ConfigError(
            f"{module}: a prompt of {prompt} tokens and a completion of {limit} pass the model's "
            f"context of {at.shape.context}: leave long queries out, or lower the limit"
        )


def arithmetic(phase: Phase, prompt_tokens: int, on: Machine) -> list[str]:
    """The batches of a phase; raises `ConfigError` if they do not come out."""
    a_step = phase.prompts * phase.generations
    at_once = phase.batch(on.processes)
    tokens = a_step * (prompt_tokens + phase.max_completion_tokens)
    return [
        f"  batch    {phase.prompts} prompts x {phase.generations} generations = {a_step} "
        f"completions a step = {on.processes} processes x {phase.accumulate} times x {at_once}",
        f"  steps    {phase.steps:,} of the optimiser a round, for {phase.steps * a_step:,} "
        "completions",
        f"  a step   at most {tokens:,} tokens and {2 * a_step:,} runs of the graph",
    ]


def epochs(phase: Phase, rows: int) -> str:
    seen = phase.steps * phase.prompts
    return f"  data     {rows:,} prompts, each seen {seen / rows:.2f} times a round"


def memory_lines(memory: Memory | None, on: Machine, note: str = "") -> list[str]:
    """Gigabytes of a process, and whether a card holds them."""
    if memory is None:
        return ["  memory   not known, as the model's size"]
    parts = ", ".join(f"{name} {size / GB:.3g}" for name, size in memory.parts.items())
    whole, split = memory.total() / GB, memory.total(on.processes) / GB
    if on.split_by is None:
        least, about = whole, f"{whole:.3g} GB a process"
    elif on.launch:
        least, about = split, f"{split:.3g} GB a process, split by {on.split_by}"
    else:
        least, about = split, f"{whole:.3g} GB a process, {split:.3g} if split by {on.split_by}"
    fits = "fits" if least <= on.card_gb else "does NOT fit"
    return [
        f"  memory   about {about}: {fits} a card of {on.card_gb:g} GB{note}",
        f"           {parts}",
    ]


def commands(
    settings: Settings,
    config: Path,
    router: str | None,
    pool: ModelPool,
    on: Machine,
    split: bool,
) -> list[str]:
    """Everything to be run, in order."""
    runs = Path("runs") / config.stem
    launch = f"accelerate launch {options(on, split)} -m"
    lines = pool_servers(pool, on.card_gb * GB)
    if lines:
        lines.insert(
            0, "# the pool's servers: on other machines, or cards that nothing below takes"
        )
    if router is None and settings.base is not None:
        router = str(runs / "router")
        model = shlex.quote(settings.base.model)
        lines += [
            f"{launch} training.sft --base {model} --data {path} --out {router}/{module} "
            f"--batch {SFT_BATCH} --max-tokens {SFT_TOKENS} --learning-rate 1e-5"
            for module, path in settings.sft.items()
        ]
        lines.append(f"python -m training.new_router --config {config} --router {router}")
    router = router or "lab"
    if on.processes == 1 and all(phase.vllm != "server" for _, phase in phases(settings)):
        rounds = f"--config {config} --router {router} --out {runs}/rl"
        run = launch if on.launch else "python -m"
        return [*lines, f"{run} training.alternate {rounds}"]
    for module, phase in phases(settings):
        if phase.vllm == "server":
            lines.append(policy_server(phase, Path(router) / module, on.processes))
        lines.append(
            f"{launch} training.grpo --config {config} --module {module} --router {router} "
            f"--out {runs}/rl/{module} --outcomes {runs}/rl/outcomes.sqlite"
        )
    return lines


def options(on: Machine, split: bool) -> str:
    """Of `accelerate launch`; a file is named where one was given or the model is to be split."""
    processes = f"--num_processes {on.processes}"
    if on.launch is None:
        return f"--config_file {FSDP_FILE} {processes}" if split else processes
    named = f"--config_file {on.launch.file}"
    return named if on.processes == on.launch.processes else f"{named} {processes}"


def indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
