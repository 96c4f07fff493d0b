"""What an order may set about a run, over the defaults of the settings. Pure."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.remedies import EXECUTABLE, SEARCHED, RepairSettings
from models.training_settings import TrainingPrecision, TrainingSettings
from schemas.settings import Settings
from schemas.vocabulary import Remedy
from services.runtime.errors import InvalidInput

BODY_RATE = "body_rate"
"""Where a bundle's record of its training keeps the learning rate at which the body of the line's first version learned."""
SHARE_OF_FIRST = 0.5
CAREFUL = 1e-4
"""The body's rate where nobody knows how the network was trained."""
PLAN = "plan"
"""Where a job keeps its frozen plan among its settings; no order may set it."""


class RunOptions(BaseModel):
    """Numbers of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(ge=1, le=1000)
    batch_size: int = Field(ge=2, le=4096)
    head_learning_rate: float = Field(gt=0, le=1)
    body_learning_rate: float | None = Field(gt=0, le=1)
    rehearsal_share: float = Field(ge=0, lt=1)
    rank: int = Field(ge=1, le=256)
    search: bool
    search_trainings: int = Field(ge=1, le=len(SEARCHED))
    distillation: float | None = Field(gt=0, le=100)
    l2sp: float | None = Field(gt=0, le=100)
    ewc: float | None = Field(gt=0, le=100)
    accumulation: int = Field(ge=1, le=1024)
    precision: TrainingPrecision
    seed: int = Field(ge=0, lt=2**31)


def require_executable(remedy: Remedy | None) -> Remedy:
    """The remedy; InvalidInput names what can be done for one that this service does not carry out."""
    if remedy is None or remedy not in EXECUTABLE:
        possible = ", ".join(EXECUTABLE)
        raise InvalidInput(f"the remedy {remedy or 'none'} cannot be carried out by this service; possible are {possible}")
    return remedy


def options_of(settings: Settings, ordered: Mapping[str, Any]) -> RunOptions:
    """The run's numbers; InvalidInput names every setting of the order that is unknown or out of range."""
    defaults = settings.remediation.model_dump(include=set(RunOptions.model_fields))
    wanted = {name: value for name, value in ordered.items() if name != PLAN}
    try:
        return RunOptions.model_validate(defaults | wanted)
    except ValidationError as error:
        faults = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors(include_input=False))
        raise InvalidInput(f"the order's settings cannot be used ({faults})") from None


def first_body_rate(training: Mapping[str, Any]) -> float | None:
    """The learning rate at which a line's body learned first, by a bundle's record of its training; None where it does not say."""
    found = training.get(BODY_RATE) or training.get("settings", {}).get("body_learning_rate")
    return float(found) if isinstance(found, int | float) and found > 0 else None


def body_rate(options: RunOptions, first_rate: float | None) -> float:
    """The learning rate of the body: what is ordered, else half of the line's first one."""
    return options.body_learning_rate or (SHARE_OF_FIRST * first_rate if first_rate is not None else CAREFUL)


def in_effect(options: RunOptions, training: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that a repair of a version will really use; `training` is its bundle's record."""
    return options.model_dump() | {"body_learning_rate": body_rate(options, first_body_rate(training))}


def repair_settings(
    options: RunOptions, device: str, reservoir: int, devices: int = 1, first_rate: float | None = None
) -> RepairSettings:
    """The settings of the repair; `reservoir` bounds the old cases for rehearsal, `devices` share each batch.

    `first_rate` is the line's `first_body_rate`. No epoch ends a training early: with the learning rate falling to the last one
    the best epochs come last, and one that forgets at first may not later.
    """
    training = TrainingSettings(
        **options.model_dump(exclude={"search", "search_trainings", "body_learning_rate"}, exclude_none=True),
        body_learning_rate=body_rate(options, first_rate),
        device=device,
        devices=devices,
        patience=options.epochs,
    )
    return RepairSettings(training=training, search=options.search, attempts=options.search_trainings, reservoir=reservoir)
