"""ReclAIm's fine-tuning recipe, re-implemented from published facts: the peer of every table.

Partial fine-tuning (its default), AdamW with weight decay 1e-5, 1e-5 for the head and 1e-6 for the body, cosine to 1e-7,
10 epochs of batches of 16, patience 5 on accuracy of a random 20 % of the fine-tuning images; flips and rotations whatever
the modality; frozen layers keep their BatchNorm in training mode; no old cases; the penalty (weight 0.1 times the sum over
tensors of the norm of the change, not squared) only where it is asked for.
"""

import copy

import torch
from torch import nn
from torch.nn import functional

from models.augmentation import AugmentationSettings, augment
from models.data import TensorSet
from models.freezing import freeze
from models.networks import body_parameters, head_parameters
from models.sampling import seeded
from models.spec import ModelSpec

EPOCHS, BATCH, PATIENCE = 10, 16, 5


def fine_tune(
    module: nn.Module, spec: ModelSpec, tensors: TensorSet, seed: int, *, penalty: float = 0.0, epochs: int = EPOCHS
) -> nn.Module:
    """The network after the recipe; the given one stays as it is."""
    tuned = copy.deepcopy(module)
    freeze(tuned, "partial")
    images, labels = torch.cat(tensors.studies), torch.tensor(tensors.labels)
    order = torch.randperm(len(labels), generator=seeded(seed, 7))
    valid, train = order[: max(1, len(order) // 5)], order[max(1, len(order) // 5) :]
    groups = [
        ([each for each in parameters if each.requires_grad], rate)
        for parameters, rate in ((head_parameters(tuned), 1e-5), (body_parameters(tuned), 1e-6))
    ]
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters], weight_decay=1e-5
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=1e-7)
    start = [(each, each.detach().clone()) for each in tuned.parameters() if each.requires_grad]
    changes = AugmentationSettings.off().model_copy(update={"rotation_degrees": 10.0, "flip": True})
    best, best_state, waited = -1.0, copy.deepcopy(tuned.state_dict()), 0
    for epoch in range(epochs):
        tuned.train()
        generator = seeded(seed, 8, epoch)
        for part in torch.split(train[torch.randperm(len(train), generator=generator)], BATCH):
            if len(part) < 2:
                continue
            batch = augment(images[part], changes, spec.preprocessing, generator)
            loss = functional.cross_entropy(tuned(batch), labels[part]) + _away(start, penalty)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        accuracy = _accuracy(tuned, images[valid], labels[valid])
        waited += 1
        if accuracy > best:
            best, best_state, waited = accuracy, copy.deepcopy(tuned.state_dict()), 0
        if waited >= PATIENCE:
            break
    tuned.load_state_dict(best_state)
    return tuned.eval()


def _away(start: list[tuple[nn.Parameter, torch.Tensor]], penalty: float) -> torch.Tensor | float:
    """The recipe's penalty on how far the weights are from where they began."""
    return penalty * torch.stack([(parameter - former).norm() for parameter, former in start]).sum() if penalty else 0.0


def _accuracy(module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    module.eval()
    with torch.inference_mode():
        found = torch.cat([module(part).argmax(1) for part in torch.split(images, 64)])
    return float((found == labels).float().mean())
