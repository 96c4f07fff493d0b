"""The rules that a report states: the settings of the installation, the model's change control plan, the code that applied them."""

import hashlib
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

from schemas.settings import Settings
from services.reporting.facts import Rules
from services.runtime.change_plans import ReadPlan, plan_of, tightened
from services.runtime.errors import InvalidInput

_PACKAGES: Final = ("schemas", "models", "services", "agents")


def rules_for(settings: Settings, model: str, today: date) -> Rules:
    """What alarms, repairs and promotions of a model obey today. A plan that is not valid then is told, and stops no report."""
    fault, read = "", None
    try:
        read = plan_of(settings, model, today)
    except InvalidInput as error:
        fault = error.reason
    return _rules(settings, read, fault)


def _rules(settings: Settings, read: ReadPlan | None, fault: str) -> Rules:
    limits = tightened(settings.remediation, read)
    return Rules(
        false_alarms_per_year=settings.evaluation.false_alarms_per_year,
        batch_size=settings.join.batch_size,
        tune_share=settings.join.tune_share,
        gate_share=settings.join.gate_share,
        min_tune_cases=limits.min_tune_cases,
        min_gate_cases=limits.min_gate_cases,
        gate_alpha=limits.gate_alpha,
        gate_margin=limits.gate_margin,
        approve_remedies=settings.policy.approve_remedies,
        max_remedies_per_day=settings.policy.max_remedies_per_day,
        code=code(),
        plan=read.plan if read is not None else None,
        plan_sha256=read.sha256 if read is not None else "",
        plan_fault=fault,
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
