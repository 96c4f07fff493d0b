"""Builds the reporting service."""

from services.reporting.handlers import Reporting
from services.reporting.rules import rules_of
from services.reporting.writer import Writer
from services.runtime.service import Context, Service


def build(context: Context) -> Service:
    """The consumer that writes reports into `reports_dir`."""
    writer = Writer(context.database, context.settings.reports_dir, rules_of(context.settings))
    return Service(name=Reporting.name, consumers=(Reporting(writer),))
