"""What the agents did, for a person."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from schemas.agent_runs import AgentRun
from schemas.tables import Order
from services.runtime.service import Context

Reclaim = Callable[..., Any]


@pytest.fixture
def ran(site: Context) -> AgentRun:
    now = site.clock.now()
    steps = [
        {"user": "ada", "role": "ml_owner"},
        {"fallback": "ReadTimeout"},
        {"agent": "orchestrator", "think": "This is about [red]lung[/red]."},
        {"act": "status", "arguments": {"model": "lung"}, "observe": '{"status": "degraded"}'},
        {"act": "order_report", "arguments": {"model": "lung"}, "observe": "no", "error": True},
    ]
    usage = {"seconds": 1.25, "llm_calls": 2, "input_tokens": 10, "output_tokens": 5, "cost": 0.5, "trace_id": "ab" * 16}
    row = AgentRun(
        run_id="run-abc123",
        cause="cause-1",
        thread="slack:T:C:1",
        planner="rules (after m)",
        text="how is lung?",
        reply="It is degraded.",
        steps=steps,
        order_ids=["ord-000000000001"],
        usage=usage,
        created_at=now,
    )
    order = Order(
        order_id="ord-000000000001",
        idempotency_key="k",
        kind="report",
        state="accepted",
        model="lung",
        reason="r",
        actor="user:ada",
        created_at=now,
        updated_at=now,
    )
    with site.database.transaction() as tx:
        tx.session.add(row)
        tx.session.add(order)
    return row


def test_the_runs_are_listed(reclaim: Reclaim, ran: AgentRun) -> None:
    said = reclaim("agents", "runs")
    for words in ("run-abc123", "ada (ml_owner)", "rules (after m)", "ord-000000000001", "10 in, 5 out"):
        assert words in said.text
    assert "run-abc123" not in reclaim("agents", "runs", "--thread", "another").text


@pytest.mark.parametrize("name", ["run-abc123", "run-abc", "abc123", "cause-1", "ord-000000000001"])
def test_a_run_is_told_step_by_step(reclaim: Reclaim, ran: AgentRun, name: str) -> None:
    said = reclaim("agents", "trace", name)
    assert said.code == 0
    words = said.text
    for part in ("how is lung?", "did not deliver: ReadTimeout", "thinks (orchestrator): This is about [red]lung[/red].", "1.25 s"):
        assert part in words
    assert words.index("thinks") < words.index("status(model=lung)") < words.index("observes") < words.index("order_report")
    assert "fails: no" in words
    assert "ab" * 16 in words
    assert "It is degraded." in words


@pytest.mark.usefixtures("ran")
def test_an_unknown_run_is_named_with_those_like_it(reclaim: Reclaim) -> None:
    said = reclaim("agents", "trace", "run-abd123")
    assert said.code == 2
    assert "run-abc123" in said.text


@pytest.mark.usefixtures("site")
def test_without_runs_it_says_so(reclaim: Reclaim) -> None:
    assert "have not run yet" in reclaim("agents", "runs").text


def test_what_a_person_reads_is_words_and_not_json(reclaim: Reclaim, site: Context, ran: AgentRun) -> None:
    from agents.runner import OBSERVED

    models = {"models": [{"name": "lung", "task": "nodule", "champion": 1, "serving": True, "status": "degraded"}]}
    steps = [
        {"event": "evaluation of lung version 1: degraded, covariate"},
        {"act": "list_models", "arguments": {}, "observe": json.dumps(models)},
        {"act": "handoff", "arguments": {"to_agent": "reporting"}, "observe": "Agent reporting is now handling.\nPlease go on."},
        {"act": "order_report", "arguments": {"model": "lung"}, "observe": '{"recorded": "report lung"}'},
        {"act": "model_status", "arguments": {"model": "lung"}, "observe": '{"model": "' + "x" * (OBSERVED - 11)},
        {"agent": "reporting", "think": "It is degraded.\nA report is ordered."},
    ]
    reply = "It is degraded.\nA report is ordered.\n\nOrder ord-000000000001 is accepted."
    row = AgentRun(**(ran.model_dump() | {"run_id": "run-words", "cause": "c2", "steps": steps, "reply": reply, "text": ""}))
    with site.database.transaction() as tx:
        tx.session.add(row)
    told = reclaim("agents", "trace", "run-words").text
    assert "evaluation of lung version 1: degraded, covariate, event c2" in told
    assert "- lung (nodule): version 1 in service, degraded" in told
    assert "2  hands over to reporting\n" in told
    assert "Please go on" not in told
    assert "recorded (report lung); the guardrails decide" in told
    assert "xxx …" in told, "an answer that was too long says that it goes on"
    assert told.count("A report is ordered.") == 1, "the last thought is the answer"
    assert "          A report is ordered.\n" in told, "further lines stand under the first"
    assert "ord-000000000001, report of lung, accepted now" in told
    assert json.loads(reclaim("agents", "trace", "run-words", "--json").text)["steps"] == steps
    assert "evaluation of lung version 1" in reclaim("agents", "runs").text
