"""The graph: decompose -> allocate -> execute_step -> verify, and back for a new plan."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.cache.base import BaseCache
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import get_runtime
from langgraph.store.base import BaseStore
from langgraph.types import Checkpointer, Command
from pydantic import BaseModel, ValidationError

from r2graph.allocate import Allocator, CheapestFirst
from r2graph.checkpoints import strict
from r2graph.decompose import Decomposer, PromptedDecomposer, SingleDecomposer
from r2graph.errors import ConfigError, first_fault
from r2graph.ledger import Budget, Ledger
from r2graph.limits import Limits
from r2graph.nodes import RUN_KEY, allocate, decompose, execute_node, flow_node, verify
from r2graph.outcome_cache import OutcomeCache
from r2graph.plan import MAX_SUBTASKS
from r2graph.pool import ModelPool, load_pool
from r2graph.review import review
from r2graph.router import Router, load_router, reader
from r2graph.state import (
    Defaults,
    R2Input,
    R2Output,
    R2State,
    RunContext,
    read_context,
    read_input,
)
from r2graph.tool import DESCRIPTION, tool_of
from r2graph.turn import Deciders
from r2graph.verify import AllOf, AnyOf, ConfidenceVerifier, FormatVerifier, JudgeVerifier, Verifier

# Each step holds a place of LangGraph's `max_concurrency` while it waits for its dependencies, node
# and stream need one each, and with too few a run waits for itself for ever. So LangGraph always
# gets enough of them, and the user's bound is kept where it matters: calls at once.
PLACES = MAX_SUBTASKS + 4


class R2Graph(CompiledStateGraph[R2State, Any, Any, R2Output]):
    """A compiled graph that also takes a text, messages or a prompt value as its input.

    To type checkers input and context are `Any`: both are checked when a run begins.
    """

    def __init__(self, *, defaults: Defaults, **compiled: Any) -> None:
        super().__init__(**compiled)
        self.defaults = defaults

    def stream(
        self,
        input: Any,  # noqa: A002 - LangGraph's names
        config: RunnableConfig | None = None,
        *,
        context: RunContext | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """As `CompiledStateGraph.stream`; raises `QueryError` and `ConfigError` at once."""
        settings = _settings(context)
        config = self._config(config, settings)
        return super().stream(_input(input, config), config, context=settings, **options)

    def astream(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        context: RunContext | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncIterator[Any]:
        """As `stream`."""
        settings = _settings(context)
        config = self._config(config, settings)
        return super().astream(_input(input, config), config, context=settings, **options)

    def get_context_jsonschema(self) -> dict[str, Any]:
        """The settings of a run: this graph's own are the defaults, its pools the choice."""
        schema = RunContext.model_json_schema()
        fields, limits = schema["properties"], schema["$defs"]["Limits"]["properties"]
        for field in fields.values():  # Studio draws those of one type; to leave one out is `null`
            field |= field.pop("anyOf")[0]
            del field["default"]
        fields["quality"]["default"] = self.defaults.quality
        if (budget := self.defaults.budget) is not None:
            fields["budget_usd"]["default"] = float(budget)
        for name, value in self.defaults.limits:
            limits[name]["default"] = value
        if self.defaults.pools:
            fields["pool"]["enum"] = list(self.defaults.pools)
        return schema

    def as_tool(
        self,
        args_schema: type[BaseModel] | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        arg_types: dict[str, type] | None = None,
    ) -> BaseTool:
        """A tool for an agent: takes a `query`, says the answer, keeps the result as its artifact.

        With arguments of your own (`args_schema`, `arg_types`) it is LangChain's.
        """
        if args_schema is not None or arg_types is not None:
            return super().as_tool(
                args_schema, name=name, description=description, arg_types=arg_types
            )
        return tool_of(self, name or self.name, description or DESCRIPTION)

    def _config(self, given: RunnableConfig | None, settings: RunContext) -> RunnableConfig:
        config: RunnableConfig = given.copy() if given else {}
        at_once = config.get("max_concurrency") or (self.config or {}).get("max_concurrency")
        run = self.defaults.run(settings, at_once)
        config["configurable"] = {**config.get("configurable", {}), RUN_KEY: run}
        config["max_concurrency"] = PLACES
        return config


def _settings(given: RunContext | Mapping[str, Any] | None) -> RunContext:
    """What is given; else, as in any nested graph, the context of the graph around."""
    if given is None:
        with suppress(RuntimeError):  # there is none around
            around = getattr(get_runtime(), "context", None)
            if isinstance(around, RunContext):
                return around
    return read_context(given)


def _input(given: object, config: RunnableConfig) -> Any:
    if given is None or isinstance(given, Command):  # a resume
        return given
    query, messages = read_input(given)
    return {"query": query, "messages": messages, "run_id": str(config.get("run_id") or uuid4())}


def create_r2_graph(
    pool: ModelPool | str | Path,
    *,
    router: Router | str | Path | None = None,
    decomposer: Decomposer | None = None,
    allocator: Allocator | None = None,
    verifier: Verifier | None = None,
    answer_verifier: Verifier | None = None,
    quality: float = 0.9,
    budget_usd: Decimal | float | str | None = None,
    limits: Limits | None = None,
    pool_budget: Budget | Decimal | float | str | None = None,
    ledger: Ledger | str | Path | None = None,
    outcomes: OutcomeCache | None = None,
    local_only: bool = False,
    review_plan: bool = False,
    pools: Mapping[str, ModelPool] | None = None,
    checkpointer: Checkpointer = None,
    store: BaseStore | None = None,
    cache: BaseCache[Any] | None = None,
    name: str = "r2graph",
) -> R2Graph:
    """A graph that answers a query step by step, each step on the cheapest member that can do it.

    `pool` and `router` are objects, names of shipped ones, or paths. `decomposer`, `allocator` and
    `verifier` (of steps) replace the router's; without a router a prompted decomposer plans, steps
    start on the cheapest member and move up when confidence and a stronger member reject them.
    `answer_verifier` judges the whole answer. `quality` (0 to 1), `budget_usd` (dollars), `limits`
    and one of the other `pools`, by name, can be set per run with `context={…}`.

    `pool_budget` is what all runs together may spend, in all or in each period. `ledger` (an SQLite
    file, or a `postgresql://` URL) records each call before it is made and each reply before it is
    used: a run that is resumed after a crash buys no recorded reply again, and processes that share
    a ledger share the pool's budget. What is in `outcomes` is not asked of a model again, and is
    billed as if it were. With `review_plan` a human approves, edits or rejects each plan before it
    is run (`r2graph/review.py`); that takes a checkpointer, of the graph's own or of a server.

    The result has the keys of `R2Output`. Raises `ConfigError` and its kind here, and `R2Error`s
    when run; what a failed run had cost is in `error.cost_usd`.
    """
    settings = read_context({"quality": quality, "budget_usd": budget_usd, "limits": limits})
    known = {key: _pool(each, local_only) for key, each in (pools or {}).items()}
    main = _pool(pool, local_only)
    if isinstance(router, str | Path):
        router = load_router(router)
    for each in (main, *known.values()):
        if router is not None:
            router.admit(each)
        if each.language != main.language:
            raise ConfigError(
                f"pools {main.name!r} and {each.name!r} differ in language: make a graph for each"
            )
    default_planner, default_chooser, default_check = _defaults(main, router)
    deciders = Deciders(
        decomposer=decomposer or default_planner,
        allocator=allocator or default_chooser,
        verifier=verifier or default_check,
        answer_verifier=answer_verifier or FormatVerifier(),
        read=reader(main.language),
        router=None if router is None else router.card.name,
    )
    builder = StateGraph(R2State, RunContext, input_schema=R2Input, output_schema=R2Output)
    builder.add_node("decompose", flow_node(deciders, decompose))
    builder.add_node("allocate", flow_node(deciders, allocate))
    builder.add_node("execute_step", execute_node(deciders))
    builder.add_node("verify", flow_node(deciders, verify), destinations=("decompose", END))
    builder.add_edge(START, "decompose")
    builder.add_edge("decompose", "allocate")
    if review_plan:
        node = flow_node(deciders, review)
        builder.add_node("review", node, destinations=("decompose", "execute_step"))
    builder.add_edge("allocate", "review" if review_plan else "execute_step")
    builder.add_edge("execute_step", "verify")
    saver = strict(checkpointer)  # so that loading a checkpoint never runs code
    compiled = builder.compile(checkpointer=saver, store=store, cache=cache, name=name)
    defaults = Defaults(
        pool=main,
        pools=known,
        quality=float(quality),
        budget=settings.budget_usd,
        limits=limits or Limits(),
        outcomes=outcomes,
        ledger=_ledger(ledger, pool_budget is not None),
        pool_budget=_budget(pool_budget),
    )
    # The way in which LangGraph itself copies a compiled graph.
    fields = {key: value for key, value in vars(compiled).items() if key != "__orig_class__"}
    return R2Graph(defaults=defaults, **fields)


def _ledger(given: Ledger | str | Path | None, needed: bool) -> Ledger | None:
    """A budget of all runs is kept in a ledger: in memory, and no calls, if the user wants none."""
    if given is None:
        return Ledger(":memory:", keep=False) if needed else None
    return given if isinstance(given, Ledger) else Ledger(given)


def _budget(given: Budget | Decimal | float | str | None) -> Budget | None:
    if given is None or isinstance(given, Budget):
        return given
    try:
        return Budget(usd=given)
    except ValidationError as error:
        raise ConfigError(first_fault(error)) from None


def _pool(pool: ModelPool | str | Path, local_only: bool) -> ModelPool:
    loaded = pool if isinstance(pool, ModelPool) else load_pool(pool)
    return loaded.local_only() if local_only else loaded


def _defaults(pool: ModelPool, router: Router | None) -> tuple[Decomposer, Allocator, Verifier]:
    """Who plans, chooses and checks unless the user says otherwise."""
    if router is not None:
        return router.decomposer, router.allocator, router.verifier
    if pool.language != "any":  # its members answer what they were trained on, and no prompts
        return SingleDecomposer(), CheapestFirst(), AllOf(FormatVerifier(), ConfidenceVerifier())
    sure = ConfidenceVerifier(-0.05, refuses=False)
    return (
        PromptedDecomposer(),
        CheapestFirst(),
        AllOf(FormatVerifier(), AnyOf(sure, JudgeVerifier())),
    )
