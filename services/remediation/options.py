"""What an order may set about a run, over the defaults of the settings. Pure."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.freezing import Strategy
from models.training import TrainingSettings
from schemas.settings import Settings
from schemas.vocabulary import Remedy
from services.runtime.errors import InvalidInput

STRATEGIES: dict[Remedy, Strategy] = {Remedy.HEAD_ONLY: "head_only", Remedy.PARTIAL: "partial", Remedy.FULL: "full"}
PLAN = "plan"
"""Where a job keeps its frozen plan among its settings; no order may set it."""


class RunOptions(BaseModel):
    """Numbers of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(ge=1, le=1000)
    batch_size: int = Field(ge=2, le=4096)
    head_learning_rate: float = Field(gt=0, le=1)
    body_learning_rate: float = Field(gt=0, le=1)
    rehearsal_share: float = Field(ge=0, lt=1)
    seed: int = Field(ge=0, lt=2**31)


def strategy_of(remedy: Remedy | None) -> Strategy:
    """How a remedy trains; InvalidInput names what can be done for one that this service does not carry out."""
    if remedy is None or remedy not in STRATEGIES:
        possible = ", ".join(STRATEGIES)
        raise InvalidInput(f"the remedy {remedy or 'none'} cannot be carried out by this service; possible are {possible}")
    return STRATEGIES[remedy]


def options_of(settings: Settings, ordered: Mapping[str, Any]) -> RunOptions:
    """The run's numbers; InvalidInput names every setting of the order that is unknown or out of range."""
    defaults = settings.remediation.model_dump(include=set(RunOptions.model_fields))
    wanted = {name: value for name, value in ordered.items() if name != PLAN}
    try:
        return RunOptions.model_validate(defaults | wanted)
    except ValidationError as error:
        faults = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors(include_input=False))
        raise InvalidInput(f"the order's settings cannot be used ({faults})") from None


def training_settings(options: RunOptions, device: str) -> TrainingSettings:
    """The training loop's settings."""
    return TrainingSettings(**options.model_dump(), device=device, patience=max(3, options.epochs // 2), precision="float32")
