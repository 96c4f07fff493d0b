"""Builds the assembly service: tickers that complete studies and end their retention, and the commitment reporter."""

from typing import Final

from services.assembly import retention
from services.assembly.completion import complete_studies
from services.assembly.reporter import Reporter
from services.assembly.repository import ASSEMBLY_BELL
from services.assembly.rules import Rules
from services.runtime.service import Context, Service, Ticker, Worker
from services.runtime.steady_clock import is_steady
from services.runtime.transaction import Transaction

RETENTION_INTERVAL_S: Final = 60.0


def build(context: Context) -> Service:
    """The service; looks four times per quiet period, at most once a second."""
    rules = Rules.from_settings(context.settings.dicom)

    def run(tx: Transaction) -> None:
        complete_studies(tx, context.pseudonyms, rules)

    interval_s = min(1.0, max(0.1, rules.shortest_s / 4))
    ticker = Ticker("assembly.completion", interval_s, run, ASSEMBLY_BELL)
    settings = context.settings

    def end_retention(tx: Transaction) -> None:
        if is_steady(tx, "retention", "image"):
            retention.run(tx, settings.archive_dir, settings.retention)

    retained = Ticker("assembly.retention", RETENTION_INTERVAL_S, end_retention)
    return Service("assembly", tickers=(ticker, retained), workers=(Worker("assembly.commitment", Reporter(context).run),))
