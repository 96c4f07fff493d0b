"""The desk: everything a tool may touch. Reading is through the database's read transactions, writing only into the ledger."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlmodel import Session

from agents import names
from agents.proposals import Cause, Ledger, Proposal
from agents.redaction import plain
from agents.tools.answers import EvaluationFacts, Metric, Problem
from schemas.settings import Settings
from schemas.tables import Evaluation
from services.runtime import registry
from services.runtime.clock import Clock
from services.runtime.database import Database

LEADING = ("accuracy", "macro_recall", "auroc", "macro_f1")


@dataclass
class Desk:
    """One run's desk. `fault` keeps an error of ours that the agent framework would turn into text."""

    database: Database
    clock: Clock
    settings: Settings
    cause: Cause
    ledger: Ledger = field(default_factory=Ledger)
    fault: Exception | None = None

    def propose(self, proposal: Proposal) -> str:
        """Record a proposal under this run's cause."""
        if proposal.evaluation_id is None:
            proposal = proposal.model_copy(update={"evaluation_id": self.cause.evaluation_id})
        self.ledger.propose(proposal)
        return f"{proposal.kind} {proposal.model}"


def resolve(session: Session, name: str) -> str | Problem:
    """The registered name that is meant, or a problem with the nearest known ones."""
    known = [row.name for row in registry.models(session)]
    found = names.exact(name, known)
    if found is not None:
        return found
    return Problem(error=f"There is no model {plain(name, 64)!r}.", known=tuple(names.nearest(name, known) or known))


def evaluation_facts(row: Evaluation, *, detail: bool = True) -> EvaluationFacts:
    """An evaluation as the agents see it: leading metrics first, evidence as short plain strings."""
    metrics = sorted(_metrics(row.metrics), key=_rank)
    return EvaluationFacts(
        evaluation_id=row.evaluation_id,
        model=row.model,
        version=row.version,
        status=row.status,
        diagnosis=row.diagnosis,
        cases=row.cases,
        stream_cases=row.stream_cases,
        summary=plain(row.summary, 600),
        evaluated_at=f"{row.evaluated_at:%Y-%m-%d %H:%M} UTC",
        reclaim_rule=row.reclaim_rule,
        metrics=tuple(metrics[:20] if detail else metrics[:1]),
        evidence=plain_evidence(row.evidence) if detail else {},
    )


def plain_evidence(evidence: dict[str, object]) -> dict[str, str]:
    """Evidence as short strings, numbers with four figures; nested and empty values are left out."""
    kept = {name: value for name, value in evidence.items() if isinstance(value, (int, float, str)) and value != ""}
    return {
        plain(name, 60): f"{value:.4g}" if isinstance(value, float) else plain(str(value))
        for name, value in list(kept.items())[:20]
    }


def _metrics(rows: Iterable[dict[str, object]]) -> list[Metric]:
    return [Metric.model_validate({**row, "name": plain(str(row.get("name", "")), 80)}) for row in rows]


def _rank(metric: Metric) -> tuple[int, str]:
    if metric.name in LEADING:
        return (LEADING.index(metric.name), metric.name)
    return (len(LEADING) + (not metric.name.startswith("recall:")), metric.name)
