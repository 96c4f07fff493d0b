"""Traces and counters of the agents, named by OpenTelemetry's semantic conventions for generative AI.

A run is a trace of its own: `agent run`, in it `invoke_agent` for each planner that was tried, in that `chat` for each request to
a language model and `execute_tool` for each tool. Links lead from it to the event that caused it, and from that event's trace,
where the orders go on, back to it. Prompts, answers, arguments and fault texts (which may quote them) stay out, unless
`telemetry.content` is set.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.metrics import Histogram
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agents.proposals import Cause, idempotency_key, order_id
from schemas.settings import LlmSettings
from services.runtime import telemetry
from services.runtime.transaction import current_traceparent

PROVIDER = "openai"
"""`gen_ai.provider.name` of an OpenAI-compatible endpoint, whoever runs it."""


@dataclass
class Meter:
    """What a run has used of a language model."""

    content: bool = False
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def cost(self, prices: LlmSettings) -> float:
        """In the site's currency, by its own prices."""
        return (self.input_tokens * prices.input_cost + self.output_tokens * prices.output_cost) / 1e6


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


def instrument(provider: trace.TracerProvider | None = None, *, content: bool = False) -> None:
    """Let LlamaIndex write its spans to the process's (or the given) provider, inputs and outputs hidden. Safe to call twice."""
    from openinference.instrumentation import TraceConfig  # noqa: PLC0415 - imported by the one process that runs agents
    from openinference.instrumentation.llama_index import LlamaIndexInstrumentor  # noqa: PLC0415

    hidden = TraceConfig(
        hide_inputs=not content,
        hide_outputs=not content,
        hide_llm_invocation_parameters=True,
        hide_llm_tools=True,
        hide_prompts=not content,
    )
    instrumentor: Any = LlamaIndexInstrumentor()
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument(config=hidden, tracer_provider=provider or trace.get_tracer_provider())


@contextmanager
def under(traceparent: str) -> Iterator[None]:
    """Make the event's span the current one, so that spans and audit rows join its trace."""
    token = otel_context.attach(TraceContextTextMapPropagator().extract({"traceparent": traceparent}))
    try:
        yield
    finally:
        otel_context.detach(token)


@contextmanager
def run_span(cause: Cause, *, content: bool = False) -> Iterator[Meter]:
    """A run: a trace of its own with a link to the cause's span. Yields the run's meter."""
    causing = _span_context(cause.traceparent)
    links = [Link(causing, {"reclaim.link": "cause"})] if causing else []
    attributes = {"reclaim.cause": cause.event_id, "reclaim.cause.kind": cause.kind, "gen_ai.conversation.id": cause.thread}
    meter, begun = Meter(content), time.monotonic()
    token = _METER.set(meter)
    try:
        with _span(f"agent run {cause.kind}", attributes, links=links, root=True) as span:
            yield meter
            span.set_attributes(_usage(meter))
    finally:
        _METER.reset(token)
        telemetry.observe("reclaim.agents.run.seconds", time.monotonic() - begun, kind=cause.kind)


def run_traceparent() -> str:
    """The current run's trace, to be kept with its record."""
    return current_traceparent()


@contextmanager
def planner_span(planner: str, cause: Cause, *, content: bool = False) -> Iterator[Span]:
    """One planner's attempt at a run."""
    attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "orchestrator",
        "gen_ai.request.model": planner,
        "gen_ai.conversation.id": cause.thread,
    }
    opted = {"gen_ai.input.messages": _messages("user", cause.prompt)} if content else {}
    with _span("invoke_agent orchestrator", attributes | opted) as span:
        yield span


def note_proposals(span: Span, cause: Cause, kinds: Sequence[tuple[Any, str]]) -> None:
    """Name the orders that the run's proposals become; their ids follow from cause, kind and model."""
    span.set_attribute("reclaim.orders", [order_id(idempotency_key(cause.event_id, kind, model)) for kind, model in kinds])


@contextmanager
def settlement_span(run_trace: str) -> Iterator[Span]:
    """Settling, in the trace of the cause where the orders go on, with a link to the run."""
    run = _span_context(run_trace)
    with _span("agents settle", {}, links=[Link(run, {"reclaim.link": "run"})] if run else []) as span:
        yield span


@contextmanager
def tool_span(name: str, arguments: dict[str, Any]) -> Iterator[Span]:
    """One tool call."""
    meter = _METER.get()
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name, "gen_ai.tool.type": "function"}
    opted = {"gen_ai.tool.call.arguments": json.dumps(arguments, default=str)} if meter and meter.content else {}
    with _span(f"execute_tool {name}", attributes | opted) as span:
        yield span


@contextmanager
def chat_span(model: str) -> Iterator[Any]:
    """One request to a language model. Yields a function that takes its answer's usage: input tokens, output tokens, text."""
    meter = _METER.get() or Meter()
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": PROVIDER, "gen_ai.request.model": model}
    begun = time.monotonic()

    with _span(f"chat {model}", attributes, kind=SpanKind.CLIENT) as span:

        def answered(input_tokens: int, output_tokens: int, text: str) -> None:
            meter.calls += 1
            meter.input_tokens += input_tokens
            meter.output_tokens += output_tokens
            span.set_attributes({"gen_ai.usage.input_tokens": input_tokens, "gen_ai.usage.output_tokens": output_tokens})
            if meter.content:
                span.set_attribute("gen_ai.output.messages", _messages("assistant", text))
            for kind, tokens in (("input", input_tokens), ("output", output_tokens)):
                _tokens().record(tokens, {**attributes, "gen_ai.token.type": kind})

        try:
            yield answered
        finally:
            _duration().record(time.monotonic() - begun, attributes)


def count_run(planner: str, kind: str, meter: Meter, prices: LlmSettings) -> None:
    """Count a finished run; the planner is told by kind, because an endpoint's model name is the site's own."""
    word = (
        "rules" if planner == "rules" else "button" if planner == "button" else "fallback" if planner.startswith("rules") else "llm"
    )
    telemetry.count("reclaim.agents.runs", planner=word, kind=kind)
    if meter.calls:
        telemetry.count("reclaim.agents.tokens", meter.input_tokens, type="input")
        telemetry.count("reclaim.agents.tokens", meter.output_tokens, type="output")
        telemetry.count("reclaim.agents.cost.millionths", round(1e6 * meter.cost(prices)))


@contextmanager
def _span(
    name: str, attributes: dict[str, Any], *, links: Sequence[Link] = (), kind: SpanKind = SpanKind.INTERNAL, root: bool = False
) -> Iterator[Span]:
    """A current span that tells of a fault by its type alone."""
    tracer = trace.get_tracer("reclaim.agents")
    parent = otel_context.Context() if root else None
    options: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}
    kept = {key: value for key, value in attributes.items() if value != ""}
    with tracer.start_as_current_span(name, parent, kind, kept, links, **options) as span:
        try:
            yield span
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR))
            raise


def _span_context(traceparent: str) -> SpanContext | None:
    found = trace.get_current_span(TraceContextTextMapPropagator().extract({"traceparent": traceparent})).get_span_context()
    return found if found.is_valid else None


def _usage(meter: Meter) -> dict[str, int]:
    if not meter.calls:
        return {}
    return {"gen_ai.usage.input_tokens": meter.input_tokens, "gen_ai.usage.output_tokens": meter.output_tokens}


def _messages(role: str, text: str) -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}], ensure_ascii=False)


@cache
def _tokens() -> Histogram:
    return metrics.get_meter("reclaim.agents").create_histogram("gen_ai.client.token.usage", unit="{token}")


@cache
def _duration() -> Histogram:
    return metrics.get_meter("reclaim.agents").create_histogram("gen_ai.client.operation.duration", unit="s")
