"""A process is killed in the middle of a run; another goes on with it and buys nothing twice.

    python examples/resume_after_crash.py

LangGraph's checkpointer keeps where the run stands, the ledger each call with its reply. What was
in flight when the process died may have been billed: nobody knows, so it is on the bill as well.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite import SqliteSaver

from r2graph import Ledger, create_r2_graph

QUERY = "( 12 + 7 ) * 6 - -3 + 85"
THREAD = RunnableConfig(configurable={"thread_id": "1"})


def run(folder: Path, *, to_be_killed: bool) -> None:
    with SqliteSaver.from_conn_string(str(folder / "checkpoints.sqlite")) as saver:
        graph = create_r2_graph(
            "lab", router="lab", checkpointer=saver, ledger=folder / "ledger.sqlite"
        )
        given = QUERY if to_be_killed else None  # `None`: go on
        for event in graph.stream(given, THREAD, stream_mode="custom", durability="sync"):
            if event["event"] == "step":
                print(f"  {event['id']}: {event['prompt']} = {event['output']}", flush=True)
                if to_be_killed and event["id"] == "s2":
                    os.kill(os.getpid(), signal.SIGKILL)
        result = graph.get_state(THREAD).values
        print(f"  answer {result['answer']}, ${result['cost_usd']} in all")


def bought(folder: Path) -> Counter[tuple[str, str | None, str]]:
    """How often each call's reply was bought, as the ledger has it."""
    with Ledger(folder / "ledger.sqlite") as ledger:
        lines = ledger.lines()
        doubt = [line.step for line in lines if ledger.is_in_doubt(line)]
        print(f"  in doubt: {', '.join(map(str, doubt)) or 'nothing'}")
    replies = [line for line in lines if line.state == "reply"]
    print(f"  bought: {len(replies)} replies, ${sum(line.usd for line in replies)}")
    return Counter((line.role, line.step, line.member) for line in replies)


def main() -> None:
    if len(sys.argv) == 2:
        run(Path(sys.argv[1]), to_be_killed=True)
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        print("a run, in a process of its own")
        child = subprocess.run([sys.executable, __file__, name], check=False)
        print(f"  ended by {signal.Signals(-child.returncode).name}")
        before = bought(folder)
        print("resumed")
        run(folder, to_be_killed=False)
        after = bought(folder)
        twice = [call for call in before if after[call] != before[call]]
        print(f"bought again: {twice or 'nothing'}")


if __name__ == "__main__":
    main()
