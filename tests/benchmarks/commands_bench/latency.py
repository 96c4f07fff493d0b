"""What the agents' layer adds to the time of the language model: a scripted endpoint with a fixed answer time, and the rest."""

import json
import statistics
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from agents.causes import command_cause
from agents.runner import Runner
from schemas.events import AgentCommand
from schemas.settings import LlmSettings, Settings
from schemas.topics import AGENT_COMMAND
from schemas.vocabulary import UserRole
from services.runtime.clock import SystemClock
from services.runtime.messages import Received, Record, headers_of

from .world import NOW, world

ANSWER_S: Final = 0.05
"""How long the endpoint thinks over each answer."""
CALLS: Final = (
    ("list_models", {}),
    ("handoff", {"to_agent": "monitoring", "reason": "status"}),
    ("model_status", {"model": "brain_mri"}),
    ("metric_history", {"model": "brain_mri", "last": 5}),
)
STEPS: Final = len(CALLS) + 1


class _Endpoint(BaseHTTPRequestHandler):
    """Answers `CALLS` in turn, then words, each after `ANSWER_S`."""

    def do_POST(self) -> None:
        """A chat completion."""
        arrived = time.perf_counter()
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        done = sum(message["role"] == "tool" for message in body["messages"])
        message: dict[str, Any] = {"role": "assistant", "content": "Version 3 is in service."}
        if done < len(CALLS):
            name, arguments = CALLS[done]
            function = {"name": name, "arguments": json.dumps(arguments)}
            message = {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": f"c{done}", "type": "function", "function": function}],
            }
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        kind = {"id": "x", "object": "chat.completion", "created": 0, "model": "scripted"}
        answer = json.dumps({**kind, "choices": [choice], "usage": usage}).encode()
        time.sleep(max(0.0, ANSWER_S - (time.perf_counter() - arrived)))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Quiet."""


def added_latency(runs: int) -> dict[str, Any]:
    """Milliseconds per step of runs with five steps each, beyond the endpoint's own answer time; the first run is left out."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    llm = LlmSettings(base_url=f"http://127.0.0.1:{server.server_address[1]}/v1", model="scripted", max_retries=0)
    settings = Settings().model_copy(update={"llm": llm})
    try:
        with world("one") as database:
            runner = Runner.of(database, SystemClock(), settings)
            added = [_timed(runner, number) for number in range(runs + 1)][1:]
    finally:
        server.shutdown()
        server.server_close()
    added.sort()
    p95 = added[min(len(added) - 1, round(0.95 * len(added)))]
    facts = {"planner": "layer", "family": f"added latency, {STEPS} steps, endpoint answers in {ANSWER_S * 1000:.0f} ms"}
    return {**facts, "commands": runs, "layer_ms_median": round(statistics.median(added), 2), "layer_ms_p95": round(p95, 2)}


def _timed(runner: Runner, number: int) -> float:
    data = AgentCommand(
        command_id="c", thread="t", user="ada", user_role=UserRole.ADMIN, channel="console", text="how is brain doing?"
    )
    record = Record(AGENT_COMMAND.name, 0, 0, "k", headers_of(AGENT_COMMAND, f"l-{number}", NOW), data.model_dump_json().encode())
    cause = command_cause(Received(f"l-{number}", AGENT_COMMAND, data, record))
    begun = time.perf_counter()
    run = runner.run(cause)
    spent = time.perf_counter() - begun
    if run.planner != "scripted":
        raise RuntimeError(f"the endpoint's run was not used: {run.planner}")
    return (spent / STEPS - ANSWER_S) * 1000
