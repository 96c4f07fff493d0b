"""OpenTelemetry of a process: spans and metrics. Nothing leaves the machine unless an OTLP endpoint is set.

Spans are kept as JSON lines in `state_dir/traces` (setting `telemetry.file`), so that one study can be followed from C-STORE
to report without any collector. Attributes hold topics, event ids and counts, never an identity.
"""

import itertools
import os
import threading
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from opentelemetry import metrics, trace
from opentelemetry.metrics import Counter, Histogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from schemas.settings import Settings

CounterName: TypeAlias = Literal[
    "reclaim.dicom.associations",  # connections to the listener, by what became of them and by peer
    "reclaim.dicom.instances",  # C-STORE requests answered, by status and peer
    "reclaim.dicom.bytes",  # bytes of data sets received, by peer
    "reclaim.studies.completed",  # announcements of studies, by what completed them
    "reclaim.commitments.finished",  # storage commitment reports delivered or given up, by outcome
    "reclaim.studies.unmatched",  # studies that no model takes
    "reclaim.versions.broken",  # polled batches that a damaged version could not score, by model and whether it serves
    "reclaim.predictions.findings",  # findings of the champions' predictions, by code and model
    "reclaim.events.handled",  # events of a polled batch, rejected and repeated ones included
    "reclaim.events.rejected",  # events sent to the dead letters
    "reclaim.outbox.published",  # events the relay has sent
    "reclaim.jobs.finished",  # long jobs that ended, by state
    "reclaim.gate.verdicts",  # challengers judged, by verdict
    "reclaim.agents.runs",  # agent runs, by planner (rules, llm, fallback, button) and kind of cause
    "reclaim.agents.tokens",  # tokens of the language model, by type
    "reclaim.agents.cost.millionths",  # cost by the site's prices, in millionths of its currency
    "reclaim.chat.received",  # messages and buttons of Slack and Teams, by channel and outcome (taken, repeated, refused)
    "reclaim.chat.messages",  # messages that reached Slack or Teams or were given up, by channel and outcome
    "reclaim.results.finished",  # results that reached the PACS or were given up, by outcome
]
HistogramName: TypeAlias = Literal[
    "reclaim.dicom.store.seconds",  # last byte of a data set to the response sent
    "reclaim.batch.seconds",  # time to handle one polled batch
    "reclaim.outbox.lag.seconds",  # age of an event when the relay sends it
    "reclaim.agents.run.seconds",  # time of one agent run, by kind of cause
    "reclaim.job.seconds",  # time of one job attempt
]
COUNTERS: Final[tuple[str, ...]] = get_args(CounterName)
HISTOGRAMS: Final[tuple[str, ...]] = get_args(HistogramName)
MAX_FILE_BYTES = 20_000_000
KEPT_FILES = 20


class JsonLinesExporter(SpanExporter):
    """Appends finished spans to a file, one JSON object a line; a full file becomes `NAME.1` and the one before it goes."""

    def __init__(self, path: Path, max_bytes: int = MAX_FILE_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._max_bytes = path, max_bytes
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write a batch; a full disk costs the spans, never the work they describe."""
        lines = "".join(span.to_json(indent=None) + "\n" for span in spans)
        try:
            with self._lock:
                self._rotate(len(lines))
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(lines)
        except OSError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def _rotate(self, coming: int) -> None:
        if self._path.exists() and self._path.stat().st_size + coming > self._max_bytes:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))


def setup(settings: Settings, service_name: str) -> None:
    """Install the process's tracer and meter providers; call once at start, before anything opens a span."""
    resource = Resource({"service.name": service_name, "service.namespace": "reclaim", "service.version": _version()})
    trace.set_tracer_provider(tracer_provider(settings, service_name, resource))
    readers = _readers(settings)
    metrics.set_meter_provider(MeterProvider(readers, resource) if readers else metrics.NoOpMeterProvider())


def tracer_provider(settings: Settings, service_name: str, resource: Resource) -> TracerProvider:
    """A provider with the exporters that the settings ask for."""
    provider = TracerProvider(resource=resource)
    if settings.telemetry.otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - 6 MB that few processes need

        exporter = OTLPSpanExporter(f"{settings.telemetry.otlp_endpoint.rstrip('/')}/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
    if settings.telemetry.file:
        folder = settings.state_dir / "traces"
        _forget_old(folder)
        file = JsonLinesExporter(folder / f"{service_name}-{os.getpid()}.jsonl")
        provider.add_span_processor(BatchSpanProcessor(file))
    return provider


def shutdown() -> None:
    """Send what is buffered and stop; harmless without `setup`."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        if isinstance(provider, TracerProvider | MeterProvider):
            provider.shutdown()


def count(name: CounterName, amount: int = 1, **attributes: str) -> None:
    """Add to a counter."""
    _counter(name).add(amount, attributes)


def observe(name: HistogramName, value: float, **attributes: str) -> None:
    """Record one measurement."""
    _histogram(name).record(value, attributes)


def handled(consumer: str, events: int, rejected: int, seconds: float) -> None:
    """A consumer has dealt with one polled batch."""
    count("reclaim.events.handled", events, consumer=consumer)
    if rejected:
        count("reclaim.events.rejected", rejected, consumer=consumer)
    observe("reclaim.batch.seconds", seconds, consumer=consumer)


@cache
def _counter(name: str) -> Counter:
    return metrics.get_meter("reclaim").create_counter(name)


@cache
def _histogram(name: str) -> Histogram:
    return metrics.get_meter("reclaim").create_histogram(name, unit="s")


def _readers(settings: Settings) -> Sequence[MetricReader]:
    if not settings.telemetry.otlp_endpoint:
        return ()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415

    exporter = OTLPMetricExporter(f"{settings.telemetry.otlp_endpoint.rstrip('/')}/v1/metrics")
    return (PeriodicExportingMetricReader(exporter),)


def _forget_old(folder: Path) -> None:
    """Each process life has its own file; keep the newest ones."""
    files = sorted(folder.glob("*.jsonl*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in itertools.islice(files, KEPT_FILES - 1, None):
        path.unlink(missing_ok=True)


def _version() -> str:
    try:
        return version("reclaim")
    except PackageNotFoundError:
        return "unknown"
