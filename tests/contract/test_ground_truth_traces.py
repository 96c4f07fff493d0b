"""Traces of polled batches: a span for each event of a small one, one for a large one, and no trace broken by either."""

from datetime import UTC, datetime

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from schemas.events import Label
from schemas.topics import LABEL
from services.runtime.consumer import TRACED, BatchConsumer, process
from services.runtime.messages import Record, headers_of

AT = datetime(2026, 3, 2, tzinfo=UTC)


class Keeper(BatchConsumer):
    name, topics = "keeper", (LABEL,)

    def __init__(self):
        self.parents = []

    def apply(self, tx, batch, prepared):
        self.parents += [event.traceparent for event in batch]


@pytest.fixture
def spans(monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def records(count):
    label = Label(study_key="a" * 32, task="t", value="v", source="s", labelled_at=AT)
    body = label.model_dump_json().encode()
    parents = [f"00-{n + 1:032x}-{n + 1:016x}-01" for n in range(count)]
    return parents, [
        Record(LABEL.name, 0, n, label.study_key, headers_of(LABEL, f"e{n}", AT, parent), body) for n, parent in enumerate(parents)
    ]


def test_each_event_of_a_small_batch_has_a_span_in_its_producers_trace(sqlite_database, spans):
    parents, batch = records(3)
    keeper = Keeper()
    process(sqlite_database, keeper, batch)
    found = spans.get_finished_spans()
    assert len(found) == 3
    assert {f"{span.context.trace_id:032x}" for span in found} == {parent.split("-")[1] for parent in parents}
    assert not set(keeper.parents) & set(parents)


def test_a_large_batch_has_one_span_with_links_and_every_trace_goes_on(sqlite_database, spans):
    parents, batch = records(TRACED + 1)
    keeper = Keeper()
    process(sqlite_database, keeper, batch)
    (span,) = spans.get_finished_spans()
    assert span.attributes["messaging.batch.message_count"] == TRACED + 1
    assert len(span.links) == TRACED
    assert keeper.parents == parents
