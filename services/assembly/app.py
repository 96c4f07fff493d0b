"""Builds the assembly service: one ticker that completes quiet studies."""

from services.assembly.completion import close_quiet_studies
from services.runtime.service import Context, Service, Ticker
from services.runtime.transaction import Transaction


def build(context: Context) -> Service:
    """The service; looks for quiet studies four times per quiet period, at most once a second."""
    quiet_period_s = context.settings.dicom.quiet_period_s

    def run(tx: Transaction) -> None:
        close_quiet_studies(tx, context.pseudonyms, quiet_period_s)

    interval_s = min(1.0, max(0.1, quiet_period_s / 4))
    return Service("assembly", tickers=(Ticker("assembly.quiet", interval_s, run),))
