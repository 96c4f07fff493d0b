"""Builds the evaluation."""

from services.evaluation.handlers import CONSUMER, Evaluate
from services.evaluation.thresholds import Prepare
from services.runtime.service import Context, Service, Worker


def build(context: Context) -> Service:
    """The service `evaluation`: its consumer judges batches, its worker makes thresholds for versions that begin to serve."""
    chosen = context.database, context.settings.evaluation, context.settings.join.batch_size
    return Service(CONSUMER, consumers=(Evaluate(*chosen),), workers=(Worker("evaluation.thresholds", Prepare(*chosen).run),))
