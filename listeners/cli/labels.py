"""Commands about ground truth."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from listeners.cli import label_quality
from listeners.cli.context import console, open_context, remark_on_service

app = typer.Typer(help="Ground truth: what the studies really showed.", no_args_is_help=True)
app.command("suspects")(label_quality.suspects)
app.command("quality")(label_quality.quality)


@app.command("import")
def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="CSV with columns study (or study_key or accession), task, label; labelled_at and source optional",
        ),
    ],
    source: Annotated[str, typer.Option(help="Who says so, for rows without a source column")] = "csv",
) -> None:
    """Import labels. Good rows go in, faulty ones are listed with their row number; the same file twice changes nothing.

    Example: reclaim labels import labels.csv, whose first lines are: study,task,label / 1.2.840.1,pneumonia,normal
    """
    from listeners.labels.csv_import import import_csv

    context = open_context()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("importing", total=None)
        summary = import_csv(context, file, source=source, on_progress=lambda rows: progress.update(task, completed=rows))
    console.print(escape(summary.text()), soft_wrap=True)
    if summary.accepted:
        remark_on_service(context, "The labels wait until it runs")
    raise typer.Exit(0 if not summary.faults else 1)
