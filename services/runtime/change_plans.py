"""Change control plans on disk: `plans/MODEL.yaml` (or .json) in the state folder, read anew for each use and cited by hash."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.change_plan import ChangePlan, Modification, words_of
from schemas.settings import RemediationSettings, Settings
from schemas.vocabulary import Remedy
from services.runtime.documents import read_fields
from services.runtime.errors import InvalidInput

LATENCY_RATIO = 2.0
"""How many times as long as the champion a challenger may take where no plan says otherwise."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """A plan and the SHA-256 of its file."""

    plan: ChangePlan
    sha256: str

    def citation(self, clause: str = "") -> str:
        """How reports and events name it: version, beginning of the hash, clause."""
        return f"change control plan {self.plan.version} ({self.sha256[:12]})" + (f", clause {clause}" if clause else "")


def plan_of(settings: Settings, model: str, today: date) -> ReadPlan | None:
    """The model's plan, None where it has none. Raises InvalidInput for one that is not valid today: then nothing may change."""
    if not NAME.fullmatch(model):
        return None
    folder = settings.state_dir / "plans"
    found = [path for suffix in SUFFIXES if (path := folder / f"{model}{suffix}").is_file()]
    if len(found) > 1:
        raise InvalidInput(f"model {model!r} has several change control plans: {', '.join(path.name for path in found)}")
    if not found:
        return None
    plan = read_plan(found[0])
    if plan.plan.model != model:
        raise InvalidInput(f"the change control plan {found[0].name} is for model {plan.plan.model!r}")
    require_in_force(plan, today)
    return plan


def require_in_force(read: ReadPlan, today: date) -> None:
    """InvalidInput before a plan's first day and after its last."""
    first, last = read.plan.approved_on, read.plan.valid_until
    if today < first:
        raise InvalidInput(f"the {read.citation()} is in force from {first} on, and nothing may change before")
    if last is not None and today > last:
        raise InvalidInput(f"the {read.citation()} was valid until {last}: nothing may change until a new one is put in force")


def read_plan(path: Path) -> ReadPlan:
    """Read and check a plan. Raises InvalidInput naming every fault at once."""
    document, content = read_fields(path, f"the change control plan {path.name}")
    if not document:
        raise InvalidInput(f"the change control plan {path.name} is not valid: it has no fields, such as `model`")
    try:
        plan = ChangePlan.model_validate(_dated(document))
    except ValidationError as error:
        places = [(words_of(".".join(map(str, item["loc"]))), item["msg"]) for item in error.errors(include_input=False)]
        faults = [f"{place}: {said}" if place else said.removeprefix("Value error, ") for place, said in places]
        raise InvalidInput(f"the change control plan {path.name} is not valid: " + "; ".join(faults)) from None
    return ReadPlan(plan, hashlib.sha256(content).hexdigest())


def _dated(document: dict[str, Any]) -> dict[str, Any]:
    """YAML reads 1.0 as a number."""
    return document | {name: str(document[name]) for name in ("version",) if name in document}


def require_planned(read: ReadPlan | None, remedy: Remedy, ordered: Mapping[str, Any]) -> Modification | None:
    """The clause that covers an order, None without a plan. Raises InvalidInput, with the clause, for an order outside the plan."""
    if read is None:
        return None
    clause = read.plan.clause_for(remedy)
    if clause is None:
        covered = ", ".join(read.plan.remedies()) or "none"
        raise InvalidInput(f"{remedy} is no modification of the {read.citation()}; it covers {covered}")
    for name, allowed in clause.settings.items():
        value = ordered.get(name)
        if value is not None and not allowed.least <= float(value) <= allowed.most:
            raise InvalidInput(f"{name} {value} is outside {allowed.least:g} to {allowed.most:g} of the {read.citation(clause.id)}")
    return clause


def require_owner_versions(read: ReadPlan | None) -> Modification | None:
    """The clause that covers versions which a person brings, None without a plan. Raises InvalidInput where there is none."""
    if read is None:
        return None
    clause = next((each for each in read.plan.modifications if each.owner_versions), None)
    if clause is None:
        raise InvalidInput(f"a version that a person brings is no modification of the {read.citation()}")
    return clause


def require_unchanged(settings: Settings, model: str, read: ReadPlan | None, today: date) -> None:
    """InvalidInput where another plan is in force than the one that a change was made and judged under, or none any more."""
    now = plan_of(settings, model, today)
    if (now.sha256 if now else "") != (read.sha256 if read else ""):
        put = f"the {now.citation()} is in force now" if now else "there is none now"
        raise InvalidInput(
            f"the change control plan of {model!r} was changed meanwhile ({put}): the verdict is void, order it again"
        )


def tightened(limits: RemediationSettings, read: ReadPlan | None) -> RemediationSettings:
    """The site's limits, or the plan's where these are stricter."""
    if read is None:
        return limits
    protocol, acceptance = read.plan.protocol, read.plan.protocol.acceptance
    stricter = {
        "gate_alpha": min(limits.gate_alpha, acceptance.gate_alpha),
        "gate_margin": min(limits.gate_margin, acceptance.margin),
        "min_gate_cases": max(limits.min_gate_cases, acceptance.min_gate_cases),
        "min_tune_cases": max(limits.min_tune_cases, protocol.min_tune_cases),
    }
    return limits.model_copy(update=stricter)


def latency_limit(read: ReadPlan | None) -> float:
    """Largest tolerated ratio of the versions' times."""
    return LATENCY_RATIO if read is None else min(LATENCY_RATIO, read.plan.protocol.acceptance.max_latency_ratio)


def citation(read: ReadPlan | None, clause: Modification | None) -> str:
    """How a promotion names the plan behind it; empty where there is none."""
    return "" if read is None else read.citation(clause.id if clause is not None else "")
