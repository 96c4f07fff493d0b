"""Fine-tuning of a serving version on new labelled cases, with what keeps it from forgetting the old ones."""

import copy
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import nn

from models.augmentation import AugmentationSettings
from models.bundle import LoadedModel
from models.data import TensorSet
from models.features import head_inputs
from models.freezing import Strategy, freeze
from models.launch import train
from models.lora import add_adapters, merge
from models.networks import head_name, head_of
from models.predictor import choose_device
from models.training import Ties, TrainingResult, TrainingSettings


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
    **ties: Unpack[Ties],
) -> FineTuned:
    """Train a copy of the champion; the champion itself is not touched.

    `valid` should hold new and old cases, so that the chosen epoch serves both. `settings.rehearsal_share` of each batch is
    drawn from `rehearsal`; `settings.l2sp` and its like pull towards the champion. The strategy `adapters` trains small added
    matrices, which are merged into the weights at the end; `head_only` passes each image through the body once, unchanged, and
    trains the head on what it sees, on one device. See `models.training.train` for the rest.
    """
    module = copy.deepcopy(champion.module)
    if strategy == "adapters":
        add_adapters(module, settings.rank, settings.seed)
    else:
        freeze(module, strategy)
    changes: dict[str, Any] = {"compare_start": True, "unfreezing": "gradual" if strategy == "gradual" else settings.unfreezing}
    trained, sets = module, (new, valid, ties.get("rehearsal"))
    if strategy == "head_only":
        trained, device = Head(module), choose_device(settings.device)
        sets = tuple(None if each is None else head_inputs(module, each, device) for each in sets)  # type: ignore[assignment]
        changes |= {"augmentation": AugmentationSettings.off(), "channels_last": False, "devices": 1}
    ties["rehearsal"] = sets[2]
    result = train(trained, champion.spec, sets[0], sets[1], settings.model_copy(update=changes), **ties)
    if strategy == "adapters":
        merge(module)
    module.requires_grad_(requires_grad=True)
    return FineTuned(module.eval(), result)


class Head(nn.Module):
    """The classifying layers of a network by the same name, so that they train as its head."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.architecture, self.name = str(module.architecture), head_name(module)
        self.add_module(self.name, head_of(module))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits of what the body answers."""
        logits: torch.Tensor = self.get_submodule(self.name)(inputs)
        return logits
