"""Which services exist, where they are built, and how `reclaim up` spreads them over processes."""

from importlib import import_module
from typing import Final

from services.runtime.errors import InvalidInput
from services.runtime.service import Context, Service

BUILDERS: Final[dict[str, str]] = {
    "relay": "services.runtime.relay",
    "dicom": "listeners.dicom.app",
    "assembly": "services.assembly.app",
    "http": "listeners.http",
    "inference": "services.inference.app",
    "ground_truth": "services.ground_truth.app",
    "evaluation": "services.evaluation.app",
    "drift": "services.drift.app",
    "agents": "agents.app",
    "remediation": "services.remediation.app",
    "reporting": "services.reporting.app",
    "results": "services.results.app",
    "chat": "listeners.chat.app",
}
"""Service name to the module whose `build(context)` makes it."""

PROCESSES: Final[dict[str, tuple[str, ...]]] = {
    "dicom": ("dicom", "assembly"),
    "bus": ("relay", "ground_truth", "evaluation", "http", "chat"),
    "inference": ("inference",),
    "agents": ("agents",),
    "upkeep": ("remediation", "reporting", "results", "drift"),
}
"""Processes of `reclaim up`: what must not wait for each other is apart, the rest shares memory."""


def build(name: str, context: Context) -> Service:
    """Build one service by name; InvalidInput names the known ones."""
    if name not in BUILDERS:
        raise InvalidInput(f"there is no service {name!r}; known: {', '.join(BUILDERS)}")
    service: Service = import_module(BUILDERS[name]).build(context)
    return service
