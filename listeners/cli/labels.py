"""Commands about ground truth."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from listeners.cli import label_quality
from listeners.cli.context import console, open_context, remark_on_service
from services.runtime.login import login

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
            help="CSV with columns study (or study_key or accession), task, label; labelled_at, source and status optional",
        ),
    ],
    source: Annotated[str, typer.Option(help="Who says so, for rows without a source column")] = "csv",
) -> None:
    """Import labels. Good rows go in, faulty ones are listed with their row number; the same file twice changes nothing.

    A row with status withdrawn (or D, W, X) takes back what its source said of the study.

    The file's first lines may be: study,task,label / 1.2.840.1,pneumonia,normal

    Example: reclaim labels import labels.csv
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


@app.command("withdraw")
def withdraw_labels(
    study: Annotated[str, typer.Argument(help="StudyInstanceUID, pseudonym or accession number")],
    task: Annotated[str | None, typer.Option(help="Only of this task; else of all")] = None,
    source: Annotated[str | None, typer.Option(help="Only what this source said; else what any said")] = None,
) -> None:
    """Take a study's labels back: they were another patient's, or never should have come. A wrong class is corrected instead.

    The batches that the study is in are evaluated again without it. Nothing is deleted: what was evaluated and judged before stays
    on record, and what a version has learnt from the label is not undone. A newer label of the study counts again.

    Examples:
    reclaim labels withdraw 1.2.840.113619.2.1

    reclaim labels withdraw A-2026-117 --task lung --source csv

    """
    from listeners.labels.withdrawal import withdraw

    context = open_context()
    found = withdraw(context, study, task, source, f"user:{login()}")
    for each in found.labels:
        console.print(escape(f"withdrawn: task {each.task}, {each.value} by {each.source}"), soft_wrap=True)
    for use in found.uses:
        console.print(escape(use), soft_wrap=True)
    remark_on_service(context, "The withdrawal waits until it runs")
