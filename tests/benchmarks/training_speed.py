"""Images a second of our training loop against a bare torch loop with the same network, batch, precision and optimiser.

    python tests/benchmarks/training_speed.py [--quick] [--networks small,resnet50] [--size N] [--rounds N] [--json FILE]

Both train on images that are in memory; ours draws its batches, sets the learning rates and keeps the loss, without augmentation
and validation, which the bare loop has not. Rounds alternate, and the ratio is taken within a round. The bare loop is measured
with torch's default AdamW, as everyone writes it first, and with its fused kernel, which ours uses: the second ratio is what our
own bookkeeping costs. Times are of the processor on a CPU, so that other work on the machine counts less, and of the clock on a
GPU. `with augmentation` is ours as it is used.
"""

import argparse
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
Round = dict[str, float]
"""Images a second of each way."""


def material(count: int, size: int) -> TensorSet:
    """Noise of two classes: the speed does not depend on what is in the images."""
    images = torch.randn(count, 1, 1, size, size, generator=torch.Generator().manual_seed(0))
    names = tuple(map(str, range(count)))
    return TensorSet(tuple(images.unbind(0)), tuple(index % 2 for index in range(count)), names, names)


def clock(device: torch.device) -> float:
    """Seconds of the processor on a CPU, of the clock on a GPU, after whatever the GPU still had to do."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def bare(spec: ModelSpec, tensors: TensorSet, batch: int, device: torch.device, *, fused: bool = False) -> float:
    """Images a second of the loop that everyone writes first."""
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    module = network_of(spec).to(device, memory_format=layout).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=fused)
    images, labels = torch.cat(tensors.studies), torch.tensor(tensors.labels)
    started = clock(device)
    for part in torch.split(torch.randperm(len(labels)), batch):
        inputs, wanted = images[part].to(device, memory_format=layout), labels[part].to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits = module(inputs)
        loss = functional.cross_entropy(logits.float(), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return len(labels) / (clock(device) - started)


def ours(spec: ModelSpec, tensors: TensorSet, batch: int, device: torch.device, *, plain: bool) -> float:
    """Images a second of one epoch, its validation of two images included."""
    settings = TrainingSettings(
        epochs=1,
        batch_size=batch,
        device=str(device),
        balance="none",
        compare_start=True,
        augmentation=AugmentationSettings.off() if plain else None,
    )
    module, few, moments = network_of(spec), tensors.subset(range(2)), list[float]()
    train(module, spec, tensors, few, settings, on_epoch=lambda _: moments.append(clock(device)))
    return len(tensors) / (moments[1] - moments[0])


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
    found = {name: measured(name, chosen, device) for name in chosen.networks.split(",")}
    rows = [row(name, chosen, device, rounds) for name, rounds in found.items()]
    targets = [
        at_least(f"{name}: ours / {words}", round(statistics.median(ratios(rounds, peer)), 3), BOUND)
        for name, rounds in found.items()
        for peer, words in (("bare", "bare loop"), ("fused", "bare loop with fused AdamW"))
    ]
    finish("training-speed", rows, targets, chosen.json, f"{chosen.images} images a round, {chosen.rounds} rounds.")


def measured(name: str, chosen: argparse.Namespace, device: torch.device) -> list[Round]:
    """Images a second of each way, interleaved, after a short run of both loops."""
    preprocessing = PreprocessingSpec(size=(chosen.size, chosen.size))
    spec = ModelSpec(name="speed", task="speed", classes=("a", "b"), network=name, preprocessing=preprocessing)
    tensors = material(chosen.images, chosen.size)
    bare(spec, tensors.subset(range(2 * chosen.batch)), chosen.batch, device)
    ours(spec, tensors.subset(range(2 * chosen.batch)), chosen.batch, device, plain=True)
    return [
        {
            "ours": ours(spec, tensors, chosen.batch, device, plain=True),
            "bare": bare(spec, tensors, chosen.batch, device),
            "fused": bare(spec, tensors, chosen.batch, device, fused=True),
            "augmented": ours(spec, tensors, chosen.batch, device, plain=False),
        }
        for _ in range(chosen.rounds)
    ]


def ratios(rounds: list[Round], peer: str) -> list[float]:
    return [each["ours"] / each[peer] for each in rounds]


def row(name: str, chosen: argparse.Namespace, device: torch.device, rounds: list[Round]) -> dict[str, object]:
    return {
        "network": name,
        "device": device.type,
        "size": chosen.size,
        "batch": chosen.batch,
        "ours, images/s": spread([each["ours"] for each in rounds], 1),
        "bare loop, images/s": spread([each["bare"] for each in rounds], 1),
        "bare loop, fused AdamW": spread([each["fused"] for each in rounds], 1),
        "ours / bare": spread(ratios(rounds, "bare")),
        "ours / bare fused": spread(ratios(rounds, "fused")),
        "with augmentation, images/s": spread([each["augmented"] for each in rounds], 1),
    }


if __name__ == "__main__":
    main()
