"""Images a second of our training loop against a bare torch loop with the same network, batch, precision and optimiser.

    python tests/benchmarks/training_speed.py [--quick] [--networks small,resnet50] [--size N] [--rounds N] [--json FILE]

Both train on images that are in memory; ours draws its batches, sets the learning rates and keeps the loss, without augmentation
and validation, which the bare loop has not. Rounds alternate, and the ratio is taken within a round. `with augmentation` is
ours as it is used.
"""

import os
import statistics
import time

import torch
from bench_report import arguments, at_least, finish, spread
from torch.nn import functional

from models.augmentation import AugmentationSettings
from models.bundle import network_of
from models.data import TensorSet
from models.predictor import choose_device
from models.spec import ModelSpec, PreprocessingSpec
from models.training import TrainingSettings, train

BOUND = 0.95


def material(count: int, size: int) -> TensorSet:
    """Noise of two classes: the speed does not depend on what is in the images."""
    images = torch.randn(count, 1, 1, size, size, generator=torch.Generator().manual_seed(0))
    names = tuple(map(str, range(count)))
    return TensorSet(tuple(images.unbind(0)), tuple(index % 2 for index in range(count)), names, names)


def bare(spec: ModelSpec, tensors: TensorSet, batch: int, device: torch.device) -> float:
    """Images a second of the loop that everyone writes first."""
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    module = network_of(spec).to(device, memory_format=layout).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    images, labels = torch.cat(tensors.studies), torch.tensor(tensors.labels)
    started = time.perf_counter()
    for part in torch.split(torch.randperm(len(labels)), batch):
        inputs, wanted = images[part].to(device, memory_format=layout), labels[part].to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits = module(inputs)
        loss = functional.cross_entropy(logits.float(), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return len(labels) / (time.perf_counter() - started)


def ours(spec: ModelSpec, tensors: TensorSet, batch: int, device: torch.device, *, plain: bool) -> float:
    """Images a second of one epoch, its validation of two images included."""
    times = []
    settings = TrainingSettings(
        epochs=1, batch_size=batch, device=str(device), balance="none", augmentation=AugmentationSettings.off() if plain else None
    )
    module, few = network_of(spec), tensors.subset(range(2))
    train(module, spec, tensors, few, settings, on_epoch=lambda record: times.append(record.seconds))
    return len(tensors) / times[0]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--networks", default="small,resnet50")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.networks, chosen.size, chosen.images, chosen.rounds = "small", 64, 256, 3
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    device = choose_device()
    rows, targets = [], []
    for name in chosen.networks.split(","):
        spec = ModelSpec(
            name="speed",
            task="speed",
            classes=("a", "b"),
            network=name,
            preprocessing=PreprocessingSpec(size=(chosen.size, chosen.size)),
        )
        tensors = material(chosen.images, chosen.size)
        bare(spec, tensors.subset(range(2 * chosen.batch)), chosen.batch, device)
        ours(spec, tensors.subset(range(2 * chosen.batch)), chosen.batch, device, plain=True)
        measured = [
            (
                ours(spec, tensors, chosen.batch, device, plain=True),
                bare(spec, tensors, chosen.batch, device),
                ours(spec, tensors, chosen.batch, device, plain=False),
            )
            for _ in range(chosen.rounds)
        ]
        ratios = [own / peer for own, peer, _ in measured]
        rows.append(
            {
                "network": name,
                "device": device.type,
                "size": chosen.size,
                "batch": chosen.batch,
                "ours, images/s": spread([own for own, _, _ in measured], 1),
                "bare loop, images/s": spread([peer for _, peer, _ in measured], 1),
                "ratio": spread(ratios),
                "with augmentation, images/s": spread([full for _, _, full in measured], 1),
            }
        )
        targets.append(at_least(f"{name}: ours / bare loop", round(statistics.median(ratios), 3), BOUND))
    finish("training-speed", rows, targets, chosen.json, f"{chosen.images} images a round, {chosen.rounds} rounds.")


if __name__ == "__main__":
    main()
