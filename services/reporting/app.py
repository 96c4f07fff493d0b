"""Builds the reporting service."""

from services.reporting.handlers import Reporting
from services.runtime.service import Context, Service


def build(context: Context) -> Service:
    """The consumer that writes reports into `reports_dir`."""
    settings = context.settings
    return Service(
        name=Reporting.name,
        consumers=(Reporting(context.database, settings.reports_dir, settings.evaluation.false_alarms_per_year),),
    )
