"""The gate's criteria for one judgement: the site's settings, or the change control plan's where these are stricter."""

from schemas.settings import Settings
from services.remediation.gate import Endpoint, Rules
from services.runtime.change_plans import ReadPlan, latency_limit, tightened


def rules_of(settings: Settings, plan: ReadPlan | None, *, looks: int, seed: int, endpoint: Endpoint = "decisions") -> Rules:
    """Criteria that are fixed before anything is scored. `looks`: earlier judgements on cases of the same patients."""
    limits = tightened(settings.remediation, plan)
    return Rules(
        limits.gate_alpha,
        limits.gate_margin,
        limits.min_gate_cases,
        settings.evaluation.bootstrap_draws,
        seed,
        latency_limit(plan),
        looks=looks,
        endpoint=endpoint,
        min_class_cases=limits.min_class_cases,
    )
