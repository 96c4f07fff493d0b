"""One line of `reclaim doctor`."""

from dataclasses import dataclass

from rich.markup import escape


@dataclass(frozen=True)
class Finding:
    """What was found. `advice` is set when something should be done; `bad` when the service cannot work as it is."""

    subject: str
    found: str
    advice: str = ""
    bad: bool = False

    def line(self) -> str:
        """The finding as a line for the terminal (rich markup)."""
        mark = "[red]✗[/]" if self.bad else "[yellow]![/]" if self.advice else "[green]✓[/]"
        return f"{mark} {escape(self.subject)}: {escape(self.found)}" + (f"\n    → {escape(self.advice)}" if self.advice else "")
