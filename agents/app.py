"""Builds the agents service."""

from agents.handlers import AgentsConsumer
from agents.runner import Runner
from agents.telemetry import instrument
from services.runtime.service import Context, Service


def build(context: Context) -> Service:
    """The agents: one consumer of evaluations and commands."""
    instrument(content=context.settings.telemetry.content)
    runner = Runner.of(context.database, context.clock, context.settings)
    return Service(name="agents", consumers=(AgentsConsumer(runner, context.settings),))
