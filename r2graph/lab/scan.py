"""SCAN (Lake & Baroni 2018): commands such as `jump opposite left twice and walk`, answered by
action sequences.

The grammar has 20,910 commands. Two official splits matter here: *simple* (random) and *length*
(commands of more than 22 actions are test). Training uses only commands that are training data in
both.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from r2graph.lab.task import Task
from r2graph.plan import Plan, Subtask

VERBS = ("walk", "look", "run", "jump")
DIRECTIONS = ("left", "right")
TIMES = {"": 1, " twice": 2, " thrice": 3}
MAX_TRAIN_ACTIONS = 22  # the official length split


def _phrases() -> dict[str, str]:
    """The 34 phrases without repetition or conjunction, and their actions."""
    actions = {verb: f"I_{verb.upper()}" for verb in VERBS}
    for direction in DIRECTIONS:
        turn = f"I_TURN_{direction.upper()}"
        for verb in (*VERBS, "turn"):
            act = [] if verb == "turn" else [f"I_{verb.upper()}"]
            actions[f"{verb} {direction}"] = " ".join([turn, *act])
            actions[f"{verb} opposite {direction}"] = " ".join([turn, turn, *act])
            actions[f"{verb} around {direction}"] = " ".join([turn, *act] * 4)
    return actions


PHRASES = _phrases()


def task(command: str) -> Task:
    """The task of one command; raises `ValueError` if the grammar does not generate it."""
    joiner = " and " if " and " in command else " after " if " after " in command else None
    parts = command.split(joiner) if joiner else [command]
    if len(parts) > 2:
        raise ValueError("a SCAN command joins at most two phrases")
    subtasks, outputs, groups = [], {}, []
    for index, part in enumerate(parts, start=1):
        phrase, times = _split_repetition(part)
        if phrase not in PHRASES:
            raise ValueError("not a SCAN phrase")
        step = f"s{index}"
        subtasks.append(Subtask(id=step, text=phrase))
        outputs[step] = PHRASES[phrase]
        groups.append([f"{{{step}}}"] * times)
    if joiner == " after ":
        groups.reverse()
    references = [reference for group in groups for reference in group]
    template = " ".join(references)
    answer = " ".join(outputs[reference[1:-1]] for reference in references)
    plan = Plan(subtasks=tuple(subtasks), answer=template if len(references) > 1 else None)
    return Task("scan", command, answer, plan, outputs, dict.fromkeys(outputs, "phrase"))


def _split_repetition(part: str) -> tuple[str, int]:
    for suffix, times in TIMES.items():
        if suffix and part.endswith(suffix):
            return part.removesuffix(suffix), times
    return part, 1


@cache
def commands() -> tuple[str, ...]:
    """All 20,910 commands in a fixed order (the order that the split file refers to)."""
    simple = [phrase + suffix for phrase in PHRASES for suffix in TIMES]
    joined = [f"{a}{j}{b}" for j in (" and ", " after ") for a in simple for b in simple]
    return (*simple, *joined)


@cache
def simple_test() -> frozenset[str]:
    """The 4,182 test commands of the official *simple* split, kept as one bit a command."""
    packed = files("r2graph.lab").joinpath("data/scan_simple_test.b85").read_text()
    bits = zlib.decompress(base64.b85decode(packed.strip()))
    return frozenset(c for i, c in enumerate(commands()) if bits[i // 8] >> (i % 8) & 1)


def split(name: str) -> Iterator[Task]:
    """The tasks of `train`, `simple-test` or `length-test`, in the fixed order of `commands`."""
    for command in commands():
        item = task(command)
        long = len(item.answer.split()) > MAX_TRAIN_ACTIONS
        in_simple_test = command in simple_test()
        if (name, True) in {
            ("train", not long and not in_simple_test),
            ("simple-test", in_simple_test),
            ("length-test", long),
        }:
            yield item
