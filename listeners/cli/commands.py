"""The commands beside those that run services."""

import typer

from listeners.cli import (
    agents,
    archive,
    dead_letters,
    evaluate,
    inspect,
    labels,
    models,
    orders,
    pacs,
    reports,
    status,
    studies,
    talk,
)


def add_to(app: typer.Typer) -> None:
    """Make them commands of `app`."""
    app.command()(status.status)
    app.command()(studies.send)
    app.command()(studies.reindex)
    app.command()(evaluate.evaluate)
    app.command()(talk.chat)
    app.add_typer(agents.app, name="agents")
    app.add_typer(archive.app, name="archive")
    app.add_typer(labels.app, name="labels")
    app.add_typer(models.app, name="models")
    app.add_typer(inspect.evaluations, name="evaluations")
    app.add_typer(reports.app, name="reports")
    app.add_typer(orders.app, name="orders")
    app.add_typer(pacs.app, name="pacs")
    app.add_typer(dead_letters.app, name="dead-letters")
