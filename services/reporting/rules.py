"""The rules that a report states, from the settings of the installation, and the code that applied them."""

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

from schemas.settings import Settings
from services.reporting.facts import Rules

_PACKAGES: Final = ("schemas", "models", "services", "agents")


def rules_of(settings: Settings) -> Rules:
    """What alarms, repairs and promotions obey here."""
    return Rules(
        false_alarms_per_year=settings.evaluation.false_alarms_per_year,
        batch_size=settings.join.batch_size,
        tune_share=settings.join.tune_share,
        gate_share=settings.join.gate_share,
        min_tune_cases=settings.remediation.min_tune_cases,
        min_gate_cases=settings.remediation.min_gate_cases,
        gate_alpha=settings.remediation.gate_alpha,
        gate_margin=settings.remediation.gate_margin,
        approve_remedies=settings.policy.approve_remedies,
        max_remedies_per_day=settings.policy.max_remedies_per_day,
        code=code(),
    )


@cache
def code() -> str:
    """Version of the software, and the SHA-256 of its source: path and content of every module, in order of the paths."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return f"reclaim {metadata.version('reclaim')}, {digest.hexdigest()}"
