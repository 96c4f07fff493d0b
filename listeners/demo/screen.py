"""What the person in front of the demonstration sees."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from listeners.demo.results import PhaseResult

Advance = Callable[..., None]
COLOURS = {"healthy": "green", "watch": "yellow", "degraded": "red", "undecided": "yellow"}


class Screen:
    """Chapters, progress bars, statements and the final table."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._chapter = 0

    def title(self, name: str, note: str) -> None:
        """The opening: what data this is, plainly."""
        self._console.print(
            Panel(
                f"[bold]reclaim[/] keeps imaging AI healthy: watch one model decay and recover.\n\nImages: {name}\n{note}",
                expand=False,
            )
        )

    def chapter(self, text: str) -> None:
        """A numbered heading."""
        self._chapter += 1
        self._console.print(f"\n[bold cyan]{self._chapter}[/]  [bold]{text}[/]")

    def say(self, text: str, style: str = "") -> None:
        """A statement under the heading."""
        self._console.print(f"   {text}", style=style or None, soft_wrap=False)

    def status(self, status: str, text: str) -> None:
        """A health status with its explanation."""
        self._console.print(f"   [{COLOURS.get(status, 'white')} bold]{status}[/]  {text}")

    @contextmanager
    def progress(self, text: str, total: int | None) -> Iterator[Advance]:
        """A progress bar; call the given function with `advance=1`, `completed=n` or `description=...`."""
        columns = (SpinnerColumn(), TextColumn("  {task.description}"), BarColumn(32), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=False) as progress:
            task = progress.add_task(text, total=total)

            def advance(**values: object) -> None:
                progress.update(task, **values)  # type: ignore[arg-type]

            yield advance

    def table(self, rows: list[PhaseResult]) -> None:
        """The table of before, degraded and recovered, with 95 % intervals."""
        table = Table(
            "", "version", "studies", "accuracy", "macro recall", "lowest recall", title="What happened", title_justify="left"
        )
        for row in rows:
            table.add_row(
                row.name, str(row.version), str(row.cases), row.accuracy.text(), row.macro_recall.text(), row.lowest_recall.text()
            )
        self._console.print()
        self._console.print(table)
