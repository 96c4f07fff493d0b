"""A predetermined change control plan (PCCP): what may change in a model that serves, how it is tested, and what is accepted.

The parts are those of FDA's guidance of December 2024 on such plans: description of modifications, modification protocol,
impact assessment. The plan is a file that people write and version; remediation and the gate enforce what is in it.
"""

import re
from datetime import date
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.vocabulary import Remedy

LIMITED = (
    "epochs",
    "batch_size",
    "head_learning_rate",
    "body_learning_rate",
    "rehearsal_share",
    "rank",
    "search_trainings",
    "distillation",
    "l2sp",
    "ewc",
    "accumulation",
    "seed",
)
"""Numbers of a repair that a plan may limit."""
CLAUSE = r"^[A-Z][A-Za-z0-9.-]{0,15}$"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(_Part):
    """Values that an order may set, both ends included."""

    least: float
    most: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least > self.most:
            msg = "least must not be above most"
            raise ValueError(msg)
        return self


class Modification(_Part):
    """One kind of change. `remedies` are the rungs it covers; `owner_versions` covers versions that a person brings."""

    id: str = Field(pattern=CLAUSE)
    description: str = Field(min_length=20)
    remedies: tuple[Remedy, ...] = ()
    owner_versions: bool = False
    settings: dict[str, Range] = Field(default_factory=dict, description="Limits of what an order may set, by the setting's name")
    rationale: str = Field(min_length=20)

    @model_validator(mode="after")
    def _limits_are_known(self) -> Self:
        """A misspelt limit would limit nothing."""
        unknown = [name for name in self.settings if name not in LIMITED]
        if unknown:
            msg = f"no setting of a repair is called {', '.join(unknown)}; there are {', '.join(LIMITED)}"
            raise ValueError(msg)
        return self


class Acceptance(_Part):
    """What the gate requires at least; where the site's settings are stricter, they hold."""

    id: str = Field("A1", pattern=CLAUSE)
    gate_alpha: float = Field(gt=0, lt=0.5, description="Level of the test for better, over all judgements on the same patients")
    margin: float = Field(gt=0, lt=0.5, description="Largest loss of recall of a class or subgroup, old or new")
    min_gate_cases: int = Field(ge=1)
    max_latency_ratio: float = Field(2.0, ge=1)


class Protocol(_Part):
    """How a modification is made and tested, in the words of the plan's owner; the numbers are in `acceptance`."""

    data_management: str = Field(min_length=20)
    retraining: str = Field(min_length=20)
    evaluation: str = Field(min_length=20)
    update: str = Field(min_length=20)
    min_tune_cases: int = Field(ge=1)
    acceptance: Acceptance


class Impact(_Part):
    """A risk of the modifications, and what keeps it small."""

    id: str = Field(pattern=CLAUSE)
    risk: str = Field(min_length=10)
    mitigation: str = Field(min_length=10)


class ChangePlan(_Part):
    """The plan of one model."""

    format: Literal["reclaim-change-plan/1"]
    model: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    version: str = Field(pattern=r"^\d+\.\d+(\.\d+)?$")
    approved_by: str = Field(min_length=1, description="Role or body that approved it; no person's name is needed")
    approved_on: date = Field(description="First day on which it is in force (UTC)")
    valid_until: date | None = Field(None, description="Last day on which it is in force; None: until it is replaced")
    intended_use: str = Field(min_length=20)
    modifications: Annotated[tuple[Modification, ...], Field(min_length=1)]
    protocol: Protocol
    impact_assessment: Annotated[tuple[Impact, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _clauses_are_distinct(self) -> Self:
        ids = [
            *(each.id for each in self.modifications),
            self.protocol.acceptance.id,
            *(each.id for each in self.impact_assessment),
        ]
        twice = sorted({each for each in ids if ids.count(each) > 1})
        if twice:
            msg = f"clauses must be distinct: {', '.join(twice)}"
            raise ValueError(msg)
        if self.valid_until is not None and self.valid_until < self.approved_on:
            msg = "valid_until must not be before approved_on"
            raise ValueError(msg)
        if not any(each.remedies or each.owner_versions for each in self.modifications):
            msg = "no modification names a remedy or allows versions that a person brings"
            raise ValueError(msg)
        return self

    def clause_for(self, remedy: Remedy) -> Modification | None:
        """The modification that covers a remedy, None where the plan has none."""
        return next((each for each in self.modifications if remedy in each.remedies), None)

    def remedies(self) -> tuple[Remedy, ...]:
        """Everything that the plan covers, in the ladder's order."""
        covered = {remedy for each in self.modifications for remedy in each.remedies}
        return tuple(remedy for remedy in Remedy if remedy in covered)


def words_of(name: str) -> str:
    """A field's place in the file, as a person reads it: `modifications.0.settings` becomes `modifications[0].settings`."""
    return re.sub(r"\.(\d+)", r"[\1]", name)
