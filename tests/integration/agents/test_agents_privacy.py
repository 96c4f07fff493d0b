"""Identifiers that lie in the archive's tables and in typed text never reach a prompt, a reply, a run record or a span."""

import json
import logging
import re

import pytest
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlmodel import select

from agents.telemetry import instrument
from agents.tools.catalogue import BY_NAME
from schemas.settings import LlmSettings
from schemas.tables import Instance, Outbox, Study
from schemas.vocabulary import Verdict

UID = "1.2.826.0.1.3680043.8.498.4711"
KEYS = ["d" * 32, "e" * 32, f"{1:032x}"]
"""Pseudonyms of patients and studies."""
SUSPECT = re.compile(r'\\*"study\\*":\s*\\*"[0-9a-f]{32}\\*"|\bstudy [0-9a-f]{32}\b')
"""Where the tool `suspect_labels` names a study, by its pseudonym, so that a person can find it: nowhere else is one."""
CANARIES = [UID, f"{UID}.1", f"{UID}.1.1", "CANARY-AE", "archive/CANARY", "canary-accession"]


def plant(hospital):
    now = hospital.clock.now()
    with hospital.database.transaction() as tx:
        tx.session.add(
            Study(
                study_uid=UID,
                study_key="e" * 32,
                patient_key="d" * 32,
                accession_key="canary-accession",
                calling_ae="CANARY-AE",
                acquired_at=now,
                first_instance_at=now,
                last_instance_at=now,
            )
        )
        tx.session.flush()
        tx.session.add(
            Instance(
                sop_instance_uid=f"{UID}.1.1",
                study_uid=UID,
                series_uid=f"{UID}.1",
                sop_class_uid="1.2",
                transfer_syntax_uid="1.2",
                path="archive/CANARY",
                size=1,
                sha256="0" * 64,
                received_at=now,
            )
        )


def every_read_tool(call):
    """A script that walks over all agents and calls every tool that reads."""
    steps = []
    for agent in ("orchestrator", "monitoring", "evaluation", "fine_tuning"):
        steps += [] if agent == "orchestrator" else [call("handoff", to_agent=agent, reason="next")]
        for name, spec in BY_NAME.items():
            if spec.agent == agent and not spec.orders:
                steps.append(call(name, **({"model": "brain_mri"} if "model" in spec.takes.model_fields else {})))
    return [*steps, "That is all."]


@pytest.fixture
def spans():
    """All spans that the agents and LlamaIndex write, prompts and answers included."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    LlamaIndexInstrumentor().uninstrument()
    instrument(provider, content=True)
    yield exporter
    LlamaIndexInstrumentor().uninstrument()


def every_topic(hospital):
    """All that went out on the bus."""
    with hospital.database.read() as session:
        return [f"{row.topic} {row.key} {row.headers} {row.body!r}" for row in session.exec(select(Outbox))]


def test_no_identifier_in_requests_logs_spans_or_topics(llm_hospital, llm_server, spans, caplog):
    caplog.set_level(logging.DEBUG)
    hospital = llm_hospital
    plant(hospital)
    hospital.cases(tune=60, gate=40, waiting=3)
    llm_server.script = lambda _request, number: 500 if number % 3 == 0 else llm_server.tool("list_models")
    hospital.handle(hospital.evaluation())
    hospital.handle(hospital.verdict(Verdict.REJECT))
    hospital.say(f"how is brain? and study {UID}?")
    llm_server.requests, earlier = [], llm_server.requests
    script = every_read_tool(llm_server.tool)
    llm_server.script = lambda _request, number: script[min(number, len(script)) - 1]
    hospital.say(f"what do you know about study {UID}? and how is brain?")
    places = {
        "requests": [*earlier, *llm_server.requests],
        "log": [caplog.text],
        "spans": [span.to_json() for span in spans.get_finished_spans()],
        "topics": every_topic(hospital),
    }
    assert all(len(texts) > 0 and any(texts) for texts in places.values())
    assert any("brain_mri" in text for text in places["spans"])
    for place, texts in places.items():
        for canary in CANARIES:
            assert not any(canary in text for text in texts), (place, canary)
        for key in KEYS if place != "topics" else ():
            assert not any(key in SUSPECT.sub("", text) for text in texts), (place, key)


def test_an_endpoint_that_chooses_sees_the_words_alone(make_hospital, sqlite_database, llm_server):
    llm = LlmSettings(base_url=llm_server.url, model="small", calls="choice", max_retries=0)
    hospital = make_hospital(sqlite_database, llm=llm)
    plant(hospital)
    llm_server.script = lambda _request, _number: '{"requests": [{"tool": "none"}]}'
    hospital.say(f"where does the needle of brain_mri point for {UID}")
    (request,) = llm_server.requests
    assert not any(canary in request for canary in CANARIES)


def test_no_identifier_reaches_the_endpoint_or_what_is_kept(llm_hospital, llm_server):
    hospital = llm_hospital
    plant(hospital)
    hospital.cases(tune=60, gate=40, waiting=3)
    hospital.handle(hospital.evaluation())
    llm_server.requests.clear()
    script = every_read_tool(llm_server.tool)
    llm_server.script = lambda _request, number: script[min(number, len(script)) - 1]
    run = hospital.say(f"what do you know about study {UID}? and how is brain?")
    assert run.planner == "scripted"
    assert len(llm_server.requests) == len(script)
    kept = json.dumps([run.text, run.reply, run.steps]) + "".join(reply.text for reply in hospital.replies())
    for canary in CANARIES:
        assert canary not in kept
        assert not any(canary in request for request in llm_server.requests)
    assert not any(key in SUSPECT.sub("", request) for request in llm_server.requests for key in KEYS)


def test_spans_hold_neither_prompts_nor_answers(llm_hospital, llm_server):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    LlamaIndexInstrumentor().uninstrument()
    instrument(provider)
    try:
        llm_server.script = lambda _request, number: llm_server.tool("list_models") if number == 1 else "ANSWER-CANARY"
        llm_hospital.say("QUESTION-CANARY how is brain?")
    finally:
        LlamaIndexInstrumentor().uninstrument()
    spans = exporter.get_finished_spans()
    text = "".join(span.to_json() for span in spans)
    assert any("achat" in span.name for span in spans)
    assert "QUESTION-CANARY" not in text
    assert "ANSWER-CANARY" not in text
    assert "brain_mri" not in text
