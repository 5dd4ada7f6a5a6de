"""One step: ask a member, check what it says, move up in place until it will do."""

from __future__ import annotations

from collections.abc import Mapping

from r2graph.calls import Flow, ModelCall, Reply, ask
from r2graph.errors import LimitExceeded, LimitName, ModelCallError
from r2graph.plan import Subtask, fill
from r2graph.pricing import to_text
from r2graph.state import AttemptRecord, Chosen, StepRecord
from r2graph.turn import Turn
from r2graph.verify import Attempt


class StepRun:
    """A step on its way from its prompt to its record."""

    def __init__(
        self, turn: Turn, step: Subtask, inputs: Mapping[str, str], chosen: Chosen
    ) -> None:
        self.turn = turn
        self.step = step
        self.inputs = inputs
        """Outputs of the steps that it refers to."""
        self.prompt = fill(step.text, inputs)
        self.chosen = chosen
        self.attempts: list[AttemptRecord] = []
        self.last: tuple[AttemptRecord, Reply] | None = None
        """The last attempt that gave an output."""

    def solve(self) -> Flow[StepRecord]:
        """Run the step within its limits. Raises `ModelCallError` if no member gave any output."""
        try:
            error = yield from self._climb()
        except LimitExceeded as limit:
            return self.record(limit.limit)
        if error is not None and self.last is None:
            raise error
        return self.record()

    def _climb(self) -> Flow[ModelCallError | None]:
        """Attempt after attempt, up the pool; returns the last error if the last attempt failed.

        When all calls failed up to the top, what is left below is better than nothing.
        """
        turn, error, is_falling = self.turn, None, False
        is_open = turn.deciders.allocator.revises and not self.chosen.get("final")
        if is_open and self.prompt != self.step.text:
            # Difficulty hangs on the operands: `{s1} * {s2}` says nothing, `47 * 68` does.
            filled = self.step.model_copy(update={"text": self.prompt})
            [self.chosen] = yield from turn.choose([filled])
        member: str | None = self.chosen["member"]
        while member is not None and len(self.attempts) < turn.run.limits.max_attempts_per_step:
            error = None
            try:
                passed = yield from self._attempt(member)
            except ModelCallError as failure:
                error, passed = failure, False
                self._enter(member, None, f"the call failed: {failure.kind}")
            turn.emit({"event": "attempt", "step": self.step.id} | self.attempts[-1])
            if passed:
                break
            if not is_falling:
                member = turn.deciders.allocator.escalate(member, turn.allocate_context)
            if is_falling or (member is None and error is not None):
                member, is_falling = self._below(), True
        return error

    def _below(self) -> str | None:
        """The strongest healthy member that was not tried, for a step that has no output yet."""
        if self.last is not None or not self.turn.deciders.allocator.moves:
            return None
        tried = {attempt["member"] for attempt in self.attempts}
        return next(
            (
                name
                for name in reversed(self.turn.pool.names)
                if name not in tried and not self.turn.run.health.is_open(name)
            ),
            None,
        )

    def _attempt(self, member: str) -> Flow[bool]:
        verifier = self.turn.deciders.verifier
        messages = self.turn.messages(self.step, self.inputs)
        spec = self.turn.pool[member]
        call = ModelCall("executor", spec, messages, step=self.step.id, logprobs=verifier.logprobs)
        reply = yield from ask(call)
        record = self._enter(member, reply, "not checked")
        attempt = Attempt(
            self.prompt, reply.text, member, reply, messages=messages, step=self.step.id
        )
        verdict = yield from self.turn.check(attempt, verifier, self.chosen.get("check"))
        record["ok"], record["reason"] = verdict.ok, verdict.reason
        record["score"] = verdict.score
        return verdict.ok is not False

    def _enter(self, member: str, reply: Reply | None, reason: str) -> AttemptRecord:
        record = AttemptRecord(
            member=member,
            output=None if reply is None else reply.text,
            ok=False if reply is None else None,
            reason=reason,
            score=None,
            input_tokens=0 if reply is None else reply.usage.input_tokens,
            output_tokens=0 if reply is None else reply.usage.output_tokens,
            cost_usd="0" if reply is None else to_text(reply.cost),
            mean_logprob=None if reply is None else reply.mean_logprob,
            seconds=0.0 if reply is None else round(reply.seconds, 3),
        )
        self.attempts.append(record)
        if reply is not None:
            self.last = record, reply
        return record

    def record(self, stopped: LimitName | None = None) -> StepRecord:
        """What there is to tell; `stopped` is the limit that ended or prevented the step."""
        record = StepRecord(
            id=self.step.id,
            text=self.step.text,
            prompt=self.prompt,
            member=self.chosen["member"],
            output=None,
            ok=False,
            local=False,
            attempts=self.attempts,
            reference_usd="0",
            stopped=stopped,
        )
        if self.last is not None:
            attempt, reply = self.last
            pool = self.turn.pool
            record["member"] = attempt["member"]
            record["output"] = attempt["output"]
            record["ok"] = attempt["ok"]
            record["local"] = pool[attempt["member"]].is_local
            record["reference_usd"] = to_text(pool[-1].price.cost(reply.usage))
        return record
