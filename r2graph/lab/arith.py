"""Integer expressions with + - *, parentheses and signed numbers: `( 12 + 7 ) * ( 5 - 38 ) - -3`.

Distribution (`draw`): a random tree of 2 to 4 operations (`deep`: 5 or 6), operators uniform,
parentheses nested at most twice (`deep`: three times), operands of one or two digits in equal
shares, one in eight negative. Products are of at most two by one digits, but one expression of five
has one of two by two; every intermediate value has at most four digits. One subtask is one
operation. Long ones can be cut finer: a product of two-digit literals (`47 * 68` is `47 * 60`,
`47 * 8` and their sum), a sum or difference with a two-digit literal on the right (`{s1} + 47` is
`{s1} + 7` and 40 more).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from r2graph.lab.task import Task
from r2graph.plan import Plan, Subtask

PRECEDENCE = {"+": 1, "-": 1, "*": 2}
TOKEN = re.compile(r"\s*(-?\d+|[()+*-])")
MAX_ABS = 9_999
CUTS = ("", "*", "+-", "+-*")  # the operators whose long operations a plan may cut
MAX_STEPS = 8  # what the lab's tokenizer has references for


@dataclass(frozen=True)
class Operation:
    """One operation of the expression tree; operands are operations or integers."""

    op: str
    left: Operation | int
    right: Operation | int


Node = Operation | int


def apply(op: str, a: int, b: int) -> int:
    return a + b if op == "+" else a - b if op == "-" else a * b


def value(node: Node) -> int:
    return node if isinstance(node, int) else apply(node.op, value(node.left), value(node.right))


def render(node: Node) -> str:
    """The expression with single spaces and only the parentheses that precedence and left
    association require.
    """
    if isinstance(node, int):
        return str(node)
    level = PRECEDENCE[node.op]
    left, right = render(node.left), render(node.right)
    if isinstance(node.left, Operation) and PRECEDENCE[node.left.op] < level:
        left = f"( {left} )"
    if isinstance(node.right, Operation) and PRECEDENCE[node.right.op] <= level:
        right = f"( {right} )"
    return f"{left} {node.op} {right}"


def parse(text: str) -> Operation:
    """The tree of an expression; `ValueError` for anything but an expression of at least one
    operation.
    """
    tokens = _tokens(text)
    node, rest = _parse_sum(tokens, 0)
    if rest != len(tokens) or isinstance(node, int):
        raise ValueError("not an expression")
    return node


def _tokens(text: str) -> list[str]:
    """Tokens; a minus directly before a digit is a sign where an operand is due."""
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if not match:
            raise ValueError("not an expression")
        token = match[1]
        operand_due = not tokens or tokens[-1] in "(+-*"
        if len(token) > 1 and token[0] == "-" and not operand_due:
            token = "-"
        position = match.start(1) + len(token)
        tokens.append(token)
    return tokens


def _parse_sum(tokens: list[str], at: int) -> tuple[Node, int]:
    node, at = _parse_product(tokens, at)
    while at < len(tokens) and tokens[at] in "+-":
        right, after = _parse_product(tokens, at + 1)
        node, at = Operation(tokens[at], node, right), after
    return node, at


def _parse_product(tokens: list[str], at: int) -> tuple[Node, int]:
    node, at = _parse_operand(tokens, at)
    while at < len(tokens) and tokens[at] == "*":
        right, at = _parse_operand(tokens, at + 1)
        node = Operation("*", node, right)
    return node, at


def _parse_operand(tokens: list[str], at: int) -> tuple[Node, int]:
    if at >= len(tokens):
        raise ValueError("not an expression")
    if tokens[at] == "(":
        node, at = _parse_sum(tokens, at + 1)
        if at >= len(tokens) or tokens[at] != ")":
            raise ValueError("not an expression")
        return node, at + 1
    if not tokens[at].lstrip("-").isdigit():
        raise ValueError("not an expression")
    return int(tokens[at]), at + 1


def task(expression: str, cut: str = "*") -> Task:
    """The task of one expression; `cut` has the operators whose long operations its plan cuts.

    Raises `ValueError` if it is none, or its plan is longer than plans may be.
    """
    tree = parse(expression)
    steps: list[tuple[str, str, str, str]] = []  # id, text, output, kind
    _plan(tree, steps, cut)
    plan = Plan(subtasks=tuple(Subtask(id=i, text=t) for i, t, _, _ in steps))
    outputs = {i: output for i, _, output, _ in steps}
    kinds = {i: kind for i, _, _, kind in steps}
    return Task("arith", " ".join(_tokens(expression)), str(value(tree)), plan, outputs, kinds)


def _plan(node: Node, steps: list[tuple[str, str, str, str]], cut: str) -> tuple[str, int]:
    """Append the steps that compute `node`; return how later steps write it, and its value."""
    if isinstance(node, int):
        return str(node), node
    (left, a), (right, b) = _plan(node.left, steps, cut), _plan(node.right, steps, cut)
    if node.op in cut and isinstance(node.right, int) and digits(b) == 2 and b % 10:
        tens = (abs(b) - abs(b) % 10) * (1 if b > 0 else -1)
        if node.op != "*":
            ones = _step(steps, node.op, left, a, str(b - tens), b - tens)
            return _step(steps, node.op, *ones, str(tens), tens)
        if isinstance(node.left, int) and digits(a) == 2:
            parts = [_step(steps, "*", left, a, str(part), part) for part in (tens, b - tens)]
            return _step(steps, "+", *parts[0], *parts[1])
    return _step(steps, node.op, left, a, right, b)


def _step(
    steps: list[tuple[str, str, str, str]], op: str, left: str, a: int, right: str, b: int
) -> tuple[str, int]:
    result = apply(op, a, b)
    name = f"s{len(steps) + 1}"
    steps.append((name, f"{left} {op} {right}", str(result), kind(op, a, b)))
    return f"{{{name}}}", result


def digits(number: int) -> int:
    return len(str(abs(number)))


def kind(op: str, a: int, b: int) -> str:
    """Kind of operation: `+- 3` (the digits of its longer operand) or `* 2x1`."""
    if op == "*":
        return f"* {max(digits(a), digits(b))}x{min(digits(a), digits(b))}"
    return f"+- {max(digits(a), digits(b))}"


def draw(rng: Random, deep: bool = False) -> Task:
    """One task from the documented distribution."""
    while True:
        operations = rng.choice((5, 6)) if deep else rng.choice((2, 3, 4))
        item = _draw_tree(rng, operations, two_by_two=rng.random() < 0.2, nesting=3 if deep else 2)
        if len(item.plan.subtasks) <= MAX_STEPS:
            return item


def _draw_tree(rng: Random, operations: int, two_by_two: bool, nesting: int) -> Task:
    """Redraw until the bounds hold and a two-by-two product is there exactly if asked for."""
    while True:
        tree = _random_tree(rng, operations)
        largest = _largest_product(tree)
        if largest is None or (largest == (2, 2)) != two_by_two:
            continue
        text = render(tree)
        if _nesting(text) <= nesting:
            return task(text)


def _random_tree(rng: Random, operations: int) -> Node:
    if operations == 0:
        number = rng.randint(0, 9) if rng.random() < 0.5 else rng.randint(10, 99)
        return -number if rng.random() < 0.125 else number
    left = rng.randint(0, operations - 1)
    return Operation(
        rng.choice("+-*"), _random_tree(rng, left), _random_tree(rng, operations - 1 - left)
    )


def _largest_product(node: Node) -> tuple[int, int] | None:
    """Digits of the longest product's operands, `(0, 0)` without one; `None` if a value is out of
    bounds.
    """
    if isinstance(node, int):
        return (0, 0)
    left, right = _largest_product(node.left), _largest_product(node.right)
    a, b = value(node.left), value(node.right)
    if left is None or right is None or abs(apply(node.op, a, b)) > MAX_ABS:
        return None
    own = (max(digits(a), digits(b)), min(digits(a), digits(b))) if node.op == "*" else (0, 0)
    return None if own[0] > 2 else max(left, right, own)


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return deepest
