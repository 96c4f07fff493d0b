"""Builds the join: its consumer, and the timer that closes batches by age."""

from services.ground_truth.handlers import CONSUMER, Join, close_overdue
from services.runtime.service import Context, Service, Ticker
from services.runtime.transaction import Transaction


def build(context: Context) -> Service:
    """The service `ground_truth`."""
    settings = context.settings.join

    def close(tx: Transaction) -> None:
        close_overdue(tx, settings.batch_size, settings.batch_max_age_s)

    interval_s = min(60.0, max(0.2, settings.batch_max_age_s / 4))
    return Service(CONSUMER, consumers=(Join(settings),), tickers=(Ticker("ground_truth.batch_age", interval_s, close),))
