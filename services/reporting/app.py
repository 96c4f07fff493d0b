"""Builds the reporting service."""

from services.reporting.facts import Rules
from services.reporting.handlers import Reporting
from services.reporting.rules import rules_for
from services.reporting.schedule import ticker
from services.reporting.writer import Writer
from services.runtime.service import Context, Service


def build(context: Context) -> Service:
    """The consumer that writes reports into `reports_dir`, and the timer that orders the routine ones."""
    chosen = context.settings

    def rules(model: str) -> Rules:
        return rules_for(chosen, model, context.clock.now().date())

    writer = Writer(context.database, chosen.reports_dir, rules, chosen.chat.reports_url)
    tickers = (ticker(context.settings.reports),) if context.settings.reports.weekly else ()
    return Service(name=Reporting.name, consumers=(Reporting(writer),), tickers=tickers)
