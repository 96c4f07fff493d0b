"""Builds the early warning."""

from services.drift.arrivals import look
from services.drift.handlers import CONSUMER, Watch
from services.drift.measure import Measure
from services.drift.repository import forget
from services.runtime.service import Context, Service, Ticker, Worker
from services.runtime.steady_clock import is_steady
from services.runtime.transaction import Transaction

FORGET_S = 3600.0


def build(context: Context) -> Service:
    """The service `drift`: its consumer keeps predictions, its worker judges windows, its tickers look at the feed and tidy up."""
    settings = context.settings.drift

    def look_at_feed(tx: Transaction) -> None:
        look(tx, settings)

    def tidy(tx: Transaction) -> None:
        if is_steady(tx, "drift", "signature"):
            forget(tx, settings.keep_days)

    return Service(
        CONSUMER,
        consumers=(Watch(),),
        tickers=(Ticker("drift.feed", settings.feed_interval_s, look_at_feed), Ticker("drift.forget", FORGET_S, tidy)),
        workers=(Worker("drift.windows", Measure(context.database, settings).run),),
    )
