"""Fine-tuning of a serving version on new labelled cases, with what keeps it from forgetting the old ones."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from models.bundle import LoadedModel
from models.data import TensorSet
from models.freezing import Strategy, freeze
from models.lora import add_adapters, merge
from models.training import EpochRecord, TrainingResult, TrainingSettings, train


@dataclass(frozen=True, slots=True)
class FineTuned:
    """The challenger's network, and how it came about. `result.best_epoch` 0 means that no epoch was better than the champion."""

    module: nn.Module
    result: TrainingResult


def finetune(
    champion: LoadedModel,
    new: TensorSet,
    valid: TensorSet,
    settings: TrainingSettings,
    strategy: Strategy,
    *,
    rehearsal: TensorSet | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    checkpoint_dir: Path | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> FineTuned:
    """Train a copy of the champion; the champion itself is not touched.

    `valid` should hold new and old cases, so that the chosen epoch serves both. `settings.rehearsal_share` of each batch is
    drawn from `rehearsal`; `settings.l2sp` and its like pull towards the champion. The strategy `adapters` trains small added
    matrices, which are merged into the weights at the end. See `models.training.train` for the rest.
    """
    module = copy.deepcopy(champion.module)
    if strategy == "adapters":
        add_adapters(module, settings.rank, settings.seed)
    else:
        freeze(module, strategy)
    changes = {"compare_start": True, "unfreezing": "gradual" if strategy == "gradual" else settings.unfreezing}
    result = train(
        module,
        champion.spec,
        new,
        valid,
        settings.model_copy(update=changes),
        rehearsal=rehearsal,
        on_epoch=on_epoch,
        checkpoint_dir=checkpoint_dir,
        should_stop=should_stop,
    )
    if strategy == "adapters":
        merge(module)
    module.requires_grad_(requires_grad=True)
    return FineTuned(module, result)
