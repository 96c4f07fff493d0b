"""Traces of the agents: each run is a span under the event that caused it; prompts and answers stay out of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


def instrument(provider: trace.TracerProvider | None = None) -> None:
    """Let LlamaIndex write its spans to the process's (or the given) provider, inputs and outputs hidden. Safe to call twice."""
    from openinference.instrumentation import TraceConfig  # noqa: PLC0415 - imported by the one process that runs agents
    from openinference.instrumentation.llama_index import LlamaIndexInstrumentor  # noqa: PLC0415

    hidden = TraceConfig(
        hide_inputs=True, hide_outputs=True, hide_llm_invocation_parameters=True, hide_llm_tools=True, hide_prompts=True
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
def run_span(planner: str, cause: str) -> Iterator[trace.Span]:
    """The span of one agent run (names follow OpenTelemetry's GenAI conventions)."""
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "orchestrator", "gen_ai.request.model": planner}
    tracer = trace.get_tracer("reclaim.agents")
    with tracer.start_as_current_span("invoke_agent orchestrator", attributes=attributes | {"reclaim.cause": cause}) as span:
        yield span
