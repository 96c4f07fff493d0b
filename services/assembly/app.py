"""Builds the assembly service: a ticker that completes studies, at once when a signal asks for it, and the commitment reporter."""

from services.assembly.completion import complete_studies
from services.assembly.reporter import Reporter
from services.assembly.repository import ASSEMBLY_BELL
from services.assembly.rules import Rules
from services.runtime.service import Context, Service, Ticker, Worker
from services.runtime.transaction import Transaction


def build(context: Context) -> Service:
    """The service; looks four times per quiet period, at most once a second."""
    rules = Rules.from_settings(context.settings.dicom)

    def run(tx: Transaction) -> None:
        complete_studies(tx, context.pseudonyms, rules)

    interval_s = min(1.0, max(0.1, rules.shortest_s / 4))
    ticker = Ticker("assembly.completion", interval_s, run, ASSEMBLY_BELL)
    return Service("assembly", tickers=(ticker,), workers=(Worker("assembly.commitment", Reporter(context).run),))
