"""Builds the evaluation."""

from services.evaluation.handlers import CONSUMER, Evaluate
from services.runtime.service import Context, Service


def build(context: Context) -> Service:
    """The service `evaluation`."""
    settings = context.settings
    return Service(CONSUMER, consumers=(Evaluate(context.database, settings.evaluation, settings.join.batch_size),))
