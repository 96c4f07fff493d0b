"""New classes learnt beside old ones: only the new rows of the last layer move, so that the old classes' logits stay exactly.

What the images' numbers do not tell apart a row of weights cannot learn; then the version is not better by the gate, and the
ladder's training rungs, which know the class once its version serves, are the way on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from models.augmentation import AugmentationSettings
from models.bundle import LoadedModel
from models.data import TensorSet
from models.errors import TrainingFailed
from models.features import head_inputs
from models.finetuning import Head
from models.heads import last_linear, with_classes
from models.predictor import choose_device
from models.spec import ModelSpec
from models.training import TrainingResult, train
from models.training_settings import EpochRecord, TrainingSettings


@dataclass(frozen=True, slots=True)
class Extended:
    """A network that knows further classes, not saved yet, and how they were learnt."""

    spec: ModelSpec
    module: nn.Module
    result: TrainingResult


def learn_classes(
    champion: LoadedModel,
    added: Sequence[str],
    train_set: TensorSet,
    valid_set: TensorSet,
    settings: TrainingSettings,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Extended:
    """Add classes behind the champion's and learn them; the champion is not touched.

    Labels of the sets are indices into the old classes and then the added ones. Each image passes the body once, unchanged.
    Weight decay and averaging are left out: both would move old rows. Raises UnknownNetwork as `with_classes`, TrainingFailed
    as `train`.
    """
    spec, module = with_classes(champion.spec, champion.module, added)
    old = len(champion.spec.classes)
    device = choose_device(settings.device)
    new, valid = (head_inputs(module, each, device) for each in (train_set, valid_set))
    changes = {"weight_decay": 0.0, "average": 0.0, "channels_last": False, "augmentation": AugmentationSettings.off()}
    before = last_linear(module).weight[:old].detach().cpu().clone()
    with _new_rows_only(module, old):
        result = train(Head(module), spec, new, valid, settings.model_copy(update=changes), on_epoch=on_epoch)
    if not torch.equal(last_linear(module).weight[:old].detach().cpu(), before):
        raise TrainingFailed("the old classes' weights have moved while new classes were learnt")
    return Extended(spec, module.eval(), result)


@contextmanager
def _new_rows_only(module: nn.Module, old: int) -> Iterator[None]:
    """Let nothing train but the rows of the last layer from `old` on."""
    module.requires_grad_(requires_grad=False)
    layer = last_linear(module)
    hooks = []
    for parameter in (layer.weight, layer.bias):
        parameter.requires_grad = True
        hooks.append(parameter.register_hook(lambda gradient: _without_first(gradient, old)))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        module.requires_grad_(requires_grad=True)


def _without_first(gradient: torch.Tensor, rows: int) -> torch.Tensor:
    """A gradient of zero moves nothing: Adam's step is the mean of gradients over their size."""
    kept = gradient.clone()
    kept[:rows] = 0
    return kept
