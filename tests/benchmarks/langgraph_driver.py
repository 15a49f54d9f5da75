"""Runs in LangGraph's own environment: steps that each add 1 KB to the state, saved by its SQLite saver.

`python langgraph_driver.py DATABASE STEPS`; prints a JSON line. Started by tests.benchmarks.workspace.
"""

import json
import operator
import os
import sqlite3
import sys
import time
from typing import Annotated, TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver  # type: ignore[import-not-found]
from langgraph.graph import END, START, StateGraph  # type: ignore[import-not-found]


class State(TypedDict):
    """What grows."""

    outputs: Annotated[list[str], operator.add]


def main() -> None:
    """Run the steps."""
    path, n_steps = sys.argv[1], int(sys.argv[2])
    graph = StateGraph(State)
    graph.add_node("step", lambda state: {"outputs": ["x" * 1000]})
    graph.add_edge(START, "step")
    graph.add_conditional_edges("step", lambda state: "step" if len(state["outputs"]) < n_steps else END)
    connection = sqlite3.connect(path, check_same_thread=False)
    app = graph.compile(checkpointer=SqliteSaver(connection))
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    app.invoke(
        {"outputs": []},
        {"configurable": {"thread_id": "1"}, "recursion_limit": n_steps + 10},
        durability="sync",
    )
    took_s, took_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    print(json.dumps({"n_bytes": os.path.getsize(path), "took_s": took_s, "cpu_s": took_cpu_s}))


if __name__ == "__main__":
    main()
