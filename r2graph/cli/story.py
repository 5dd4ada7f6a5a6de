"""How a run is told on a terminal: its events one by one, then the answer and the bill."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from r2graph.state import R2Output

_MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("·", "dim")}


class Story:
    """Prints a run's custom events; text of models and users is never read as markup."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False)
        self._waiting: set[str] = set()  # steps with references

    def tell(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "plan":
                self._plan(event["plan"])
            case "allocation":
                self._allocation(event["allocation"])
            case "attempt":
                self._attempt(event)

    def end(self, result: R2Output, strongest: str) -> None:
        self._line("answer", style="bold")
        self._line(f"  {result['answer'] or 'none'}", f"  ({result['stop_reason']})")
        self._line("bill", style="bold")
        self.console.print(usage_table(result))
        cost, estimate = Decimal(result["cost_usd"]), Decimal(result["counterfactual_usd"])
        self._line(
            f"  ${result['cost_usd']} in all: ${result['router_cost_usd']} for the router, "
            f"${result['verifier_cost_usd']} for checks; {result['local_share']:.0%} of the steps "
            "ran on this device"
        )
        saved = f"; this run saved {1 - cost / estimate:.0%}" if estimate > cost else ""
        self._line(
            f"  ${result['counterfactual_usd']} is an estimate of the same steps, all on "
            f"{strongest}{saved}"
        )

    def _plan(self, plan: dict[str, Any]) -> None:
        self._line("plan", style="bold")
        self._waiting = {step["id"] for step in plan["subtasks"] if step["depends_on"]}
        for step in plan["subtasks"]:
            self._line(f"  {step['id']}: {step['text']}")
        if plan["answer"] is not None:
            self._line(f"  answer: {plan['answer']}")

    def _allocation(self, allocation: dict[str, Any]) -> None:
        self._line("allocation", style="bold")
        for step, chosen in allocation.items():
            again = chosen["slot"] is not None and step in self._waiting
            note = "; asked again once its inputs are known" if again else ""
            self._line(f"  {step} to {chosen['member']}", f"  {chosen['reason']}{note}")
        self._line("steps", style="bold")

    def _attempt(self, attempt: dict[str, Any]) -> None:
        mark, style = _MARKS[attempt["ok"]]
        line = Text(f"  {attempt['step']} on {attempt['member']}: ")
        line.append(f"{mark} ", style)
        line.append("no output" if attempt["output"] is None else attempt["output"])
        line.append(f"  {attempt['reason']}", "dim")
        self.console.print(line, soft_wrap=True)

    def _line(self, text: str, note: str = "", *, style: str = "") -> None:
        self.console.print(Text(text, style).append(note, "dim"), soft_wrap=True)


def usage_table(result: R2Output) -> Table:
    """Tokens and dollars of each model, the router's own among them."""
    table = Table(box=None, padding=(0, 2))
    table.add_column("model")
    for name in ("calls", "tokens in", "tokens out", "$"):
        table.add_column(name, justify="right")
    for model, usage in result["usage"].items():
        table.add_row(
            Text(model),
            str(usage["calls"]),
            f"{usage['input_tokens']:,}",
            f"{usage['output_tokens']:,}",
            usage["cost_usd"],
        )
    return table
