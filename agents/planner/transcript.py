"""A conversation as the planner's policy sees it. Pure data, no LlamaIndex."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Observation:
    """A tool that was called in this run, and what it answered (JSON text)."""

    tool: str
    arguments: dict[str, Any]
    content: str


@dataclass(frozen=True)
class Transcript:
    """The last message of the service, the exchanges of the thread before it, and what this run has observed since."""

    message: str
    earlier: tuple[tuple[str, str], ...] = ()
    observed: tuple[Observation, ...] = ()


@dataclass(frozen=True)
class Act:
    """Call this tool next."""

    tool: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Say:
    """End the run with this text."""

    text: str


Step = Act | Say
