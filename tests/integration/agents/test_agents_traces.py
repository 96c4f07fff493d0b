"""A run is a trace of its own, linked to its cause and its orders; nothing of what was said stands in it by default."""

import json
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agents import telemetry
from schemas.settings import LlmSettings, TelemetrySettings

CAUSE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """All spans of the agents, whatever provider the process has."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda name, *_args, **_options: provider.get_tracer(name))
    yield exporter
    provider.shutdown()


def named(spans, beginning):
    return [span for span in spans.get_finished_spans() if span.name.startswith(beginning)]


def said(hospital, text):
    record = hospital.command(text)
    record = type(record)(record.topic, 0, 0, record.key, {**record.headers, "traceparent": CAUSE}, record.body)
    return hospital.handle(record)


def test_a_run_is_one_trace_with_links_to_cause_and_orders(hospital, spans):
    hospital.cases(tune=60, gate=40)
    run = said(hospital, "write a report on brain")
    (root,) = named(spans, "agent run command")
    assert root.parent is None
    assert format(root.context.trace_id, "032x") == run.usage["trace_id"] != CAUSE[3:35]
    (link,) = root.links
    assert format(link.context.trace_id, "032x") == CAUSE[3:35]
    assert list(root.attributes["reclaim.orders"]) == run.order_ids != []
    inside = [*named(spans, "invoke_agent"), *named(spans, "execute_tool")]
    assert {span.context.trace_id for span in inside} == {root.context.trace_id}
    (settled,) = named(spans, "agents settle")
    assert format(settled.context.trace_id, "032x") == CAUSE[3:35]
    assert [each.context.trace_id for each in settled.links] == [root.context.trace_id]
    assert list(settled.attributes["reclaim.orders"]) == run.order_ids


def test_names_follow_the_conventions_for_generative_ai(llm_hospital, llm_server, spans):
    llm_server.script = lambda _request, number: llm_server.tool("list_models") if number == 1 else "There is one."
    run = llm_hospital.say("which models are there?")
    assert run.planner == "scripted"
    (agent,), (tool,), chats = named(spans, "invoke_agent"), named(spans, "execute_tool"), named(spans, "chat ")
    assert agent.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert (tool.attributes["gen_ai.operation.name"], tool.attributes["gen_ai.tool.name"]) == ("execute_tool", "list_models")
    assert len(chats) == 2
    for chat in chats:
        shown = {
            name: chat.attributes[name] for name in ("gen_ai.operation.name", "gen_ai.request.model", "gen_ai.usage.input_tokens")
        }
        assert shown == {"gen_ai.operation.name": "chat", "gen_ai.request.model": "scripted", "gen_ai.usage.input_tokens": 1}


def test_tokens_and_cost_stand_in_the_record(sqlite_database, make_hospital, llm_server, spans):
    llm = LlmSettings(base_url=llm_server.url, model="scripted", max_retries=0, input_cost=2_000_000, output_cost=3_000_000)
    hospital = make_hospital(sqlite_database, llm=llm)
    llm_server.script = lambda _request, number: llm_server.tool("list_models") if number == 1 else "There is one."
    used = hospital.say("which models are there?").usage
    assert (used["llm_calls"], used["input_tokens"], used["output_tokens"], used["cost"]) == (2, 2, 2, 10.0)


def test_runs_tokens_and_cost_are_counted(sqlite_database, make_hospital, llm_server, monkeypatch):
    counted = []
    monkeypatch.setattr(telemetry.telemetry, "count", lambda name, amount=1, **labels: counted.append((name, amount, labels)))
    llm = LlmSettings(base_url=llm_server.url, model="scripted", max_retries=0, input_cost=1_000, output_cost=2_000)
    hospital = make_hospital(sqlite_database, llm=llm)
    llm_server.script = lambda _request, number: llm_server.tool("list_models") if number == 1 else "There is one."
    hospital.say("which models are there?")
    assert [each for each in counted if each[0].startswith("reclaim.agents")] == [
        ("reclaim.agents.runs", 1, {"planner": "llm", "kind": "command"}),
        ("reclaim.agents.tokens", 2, {"type": "input"}),
        ("reclaim.agents.tokens", 2, {"type": "output"}),
        ("reclaim.agents.cost.millionths", 6_000, {}),
    ]


def test_an_endpoint_that_fails_is_counted_too_and_its_words_stay_out(llm_hospital, llm_server, spans):
    def script(_request, number):
        return llm_server.tool("list_models") if number == 1 else 500

    llm_server.script = script
    run = llm_hospital.say("FAULT-CANARY which models are there?")
    assert run.planner == "rules (after scripted)"
    assert run.usage["llm_calls"] == 1
    roots = named(spans, "agent run")
    assert len(roots) == 1
    assert len(named(spans, "invoke_agent")) == 2
    assert any(span.attributes.get("error.type") for span in named(spans, "chat "))
    assert "FAULT-CANARY" not in text_of(spans)
    assert "broken" not in text_of(spans)


@pytest.mark.parametrize("content", [False, True])
def test_what_was_said_stands_in_spans_only_where_the_site_wants_it(sqlite_database, make_hospital, llm_server, spans, content):
    llm = LlmSettings(base_url=llm_server.url, model="scripted", max_retries=0)
    hospital = make_hospital(sqlite_database, llm=llm, telemetry=TelemetrySettings(content=content))
    llm_server.script = lambda _request, number: llm_server.tool("list_models") if number == 1 else "ANSWER-CANARY"
    hospital.say("QUESTION-CANARY which models are there?")
    assert ("QUESTION-CANARY" in text_of(spans)) is content
    assert ("ANSWER-CANARY" in text_of(spans)) is content


def text_of(spans):
    return json.dumps([span.to_json() for span in spans.get_finished_spans()])


def test_without_tracing_a_run_is_the_same(hospital, monkeypatch):
    monkeypatch.setattr(trace, "get_tracer", trace.NoOpTracerProvider().get_tracer)
    assert hospital.say("which models are there?").usage["trace_id"] == ""
    assert telemetry.run_traceparent() == ""


@pytest.mark.parametrize(
    ("raw", "tokens"),
    [
        (None, (0, 0)),
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, (3, 4)),
        ({"usage": None}, (0, 0)),
        ({"usage": {"prompt_tokens": "many", "completion_tokens": -1}}, (0, 0)),
    ],
)
def test_an_endpoint_may_count_as_it_likes(raw, tokens):
    from agents.endpoint import tokens_of

    assert tokens_of(raw) == tokens
