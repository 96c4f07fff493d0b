"""The settings of a training in a file: what `reclaim models train --config FILE` reads (docs/examples/training.yaml)."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from models.spec import Spec
from services.runtime.documents import read_fields
from services.runtime.errors import InvalidInput


class TrainingFile(Spec):
    """The network's `options`, `preprocessing` (`models.spec`) and `training` (`models.training_settings`); each is optional."""

    options: dict[str, int | float | str | bool] = Field(default_factory=dict)
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)


def read_training_file(path: Path) -> TrainingFile:
    """Read YAML or JSON. Raises InvalidInput for what is neither, and for parts that are not known."""
    document, _ = read_fields(path, path.name)
    if not document:
        raise InvalidInput(f"{path.name} has none of the parts options, preprocessing and training")
    try:
        return TrainingFile.model_validate(document)
    except ValidationError as error:
        raise InvalidInput(f"{path.name} is not valid: {faults_of(error)}") from None


def faults_of(error: ValidationError) -> str:
    """Every fault with its place, without the value that was given."""
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_input=False))
