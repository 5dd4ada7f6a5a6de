"""What can be asked for: graphs by the names that clients know as models, with their settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from r2graph.errors import ConfigError
from r2graph.graph import R2Graph
from r2graph.pricing import to_text
from r2graph.serve.refusals import Refusal
from r2graph.state import RunContext

NAME = re.compile(r"[A-Za-z0-9_.:/+-]{1,100}")
# `lab-q0.9`, `lab-b0.01`, `lab-q0.9-b0.01`
_MODEL = re.compile(
    r"(?P<name>.+?)(-q(?P<quality>[01](\.[0-9]{1,6})?))?(-b(?P<budget>[0-9]{1,9}(\.[0-9]{1,12})?))?"
)
SHOWN_QUALITIES = (
    "0.5",
    "0.8",
    "0.95",
)  # in the list of models; others can be asked for all the same


@dataclass(frozen=True)
class Choice:
    """A graph and the settings of one run."""

    name: str
    """Of the graph."""
    graph: R2Graph
    quality: float | None
    budget_usd: Decimal | None

    @property
    def context(self) -> RunContext:
        return RunContext(quality=self.quality, budget_usd=self.budget_usd)


class Served:
    """The graphs of a server. Raises `ConfigError` for names that no client could write."""

    def __init__(self, graphs: R2Graph | Mapping[str, R2Graph]) -> None:
        if isinstance(graphs, R2Graph):
            graphs = {graphs.defaults.pool.name: graphs}
        for name in graphs:
            if not NAME.fullmatch(name):
                raise ConfigError(f"{name!r} is no name for a model: use letters, digits and .:/+-")
        if not graphs:
            raise ConfigError("there is no graph to serve")
        self.graphs = dict(graphs)

    def choose(
        self, model: str, quality: float | None = None, budget_usd: Decimal | None = None
    ) -> Choice:
        """The graph that a model's name stands for; raises `Refusal`.

        A budget can be lower than the graph's own, which is the server's cap, and not higher.
        """
        name = model
        if model not in self.graphs and (match := _MODEL.fullmatch(model)):
            name = match["name"]
            if match["quality"] is not None:
                quality = _once("quality", float(match["quality"]), quality)
            if match["budget"] is not None:
                budget_usd = _once("budget_usd", Decimal(match["budget"]), budget_usd)
        if name not in self.graphs:
            known = ", ".join(self.graphs)
            raise Refusal(
                404, f"no such model; this server has {known}", "model_not_found", param="model"
            )
        if quality is not None and not 0 <= quality <= 1:
            raise _bad("quality", "quality must be between 0 and 1")
        cap = self.graphs[name].defaults.budget
        if cap is not None and budget_usd is not None and budget_usd > cap:
            raise _bad("budget_usd", f"budget_usd is above this server's cap of ${to_text(cap)}")
        return Choice(name, self.graphs[name], quality, budget_usd)

    def models(self) -> list[dict[str, Any]]:
        """The list of models in OpenAI's form, each graph by itself and at some qualities."""
        return [
            self.model(name + suffix)
            for name in self.graphs
            for suffix in ("", *(f"-q{quality}" for quality in SHOWN_QUALITIES))
        ]

    def model(self, model: str) -> dict[str, Any]:
        """One line of the list, with the graph's members; raises `Refusal` if there is none."""
        choice = self.choose(model)
        defaults = choice.graph.defaults
        budget = defaults.budget if choice.budget_usd is None else choice.budget_usd
        members = [
            {
                "name": spec.name,
                "input_per_mtok": to_text(spec.price.input_per_mtok),
                "output_per_mtok": to_text(spec.price.output_per_mtok),
                "local": spec.is_local,
            }
            for spec in defaults.pool.members
        ]
        about = {
            "graph": choice.name,
            "language": defaults.pool.language,
            "quality": defaults.quality if choice.quality is None else choice.quality,
            "budget_usd": None if budget is None else to_text(budget),
            "members": members,
        }
        return {"id": model, "object": "model", "created": 0, "owned_by": "r2graph", "r2": about}


def _once(param: str, named: Any, given: Any) -> Any:
    if given is not None and given != named:
        raise _bad(param, f"the model's name and the field {param} differ: give one of them")
    return named


def _bad(param: str, message: str) -> Refusal:
    return Refusal(400, message, "invalid_value", param=param)
