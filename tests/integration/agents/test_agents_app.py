"""The service as the process builds it."""

from openinference.instrumentation.llama_index import LlamaIndexInstrumentor

from agents.app import build
from agents.handlers import AgentsConsumer


def test_the_service_is_one_consumer_that_takes_one_event_at_a_time(sqlite_context):
    try:
        service = build(sqlite_context)
        assert build(sqlite_context).name == "agents"  # a second build in one process changes nothing
    finally:
        LlamaIndexInstrumentor().uninstrument()
    (consumer,) = service.consumers
    assert isinstance(consumer, AgentsConsumer)
    assert consumer.max_records == 1
    assert {topic.name for topic in consumer.topics} == {
        "evaluation.completed.v1",
        "maintenance.promotion.v1",
        "agent.command.v1",
    }
