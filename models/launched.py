"""One process of a training on several devices, as `models.launch` has torchrun start it: `python -m models.launched FOLDER`."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.bundle import network_of
from models.checkpoint import snapshot
from models.data import TensorSet
from models.distributed import process_group
from models.errors import ModelError
from models.launch import EPOCHS, FAULT, RESULT, SETS, START, STOP, TASK, WEIGHTS
from models.lora import add_adapters
from models.spec import ModelSpec
from models.training import train
from models.training_settings import EpochRecord, TrainingSettings


def main(folder: Path) -> int:
    """Train this process's share; the first process writes what comes of it into `folder`."""
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    spec, settings = ModelSpec.model_validate(task["spec"]), TrainingSettings.model_validate(task["settings"])
    new, valid, old = (_set(each) for each in torch.load(folder / SETS, weights_only=True))
    assert new is not None
    assert valid is not None
    with process_group() as rank:
        try:
            module = _network(folder, task, spec, settings)
            result = train(
                module,
                spec,
                new,
                valid,
                settings,
                rehearsal=old,
                on_epoch=lambda record: _tell(folder, record),
                checkpoint_dir=Path(task["checkpoints"]) if task["checkpoints"] else None,
                should_stop=_asked_to_stop(folder, int(task["starter"])),
            )
        except ModelError as error:
            if rank == 0:
                (folder / FAULT).write_text(json.dumps({"reason": error.reason, "kind": type(error).__name__}), encoding="utf-8")
            return 1
        if rank == 0:
            save_file(snapshot(module), folder / WEIGHTS)
            history = [record.model_dump() for record in result.history]
            outcome = {"history": history, "best_epoch": result.best_epoch, "stopped_by": result.stopped_by}
            (folder / RESULT).write_text(json.dumps(outcome), encoding="utf-8")
            if not _is_alive(int(task["starter"])):
                # Nobody is left to take the outcome, or the images, away.
                shutil.rmtree(folder, ignore_errors=True)
    return 0


def _set(fields: Mapping[str, Any] | None) -> TensorSet | None:
    if fields is None:
        return None
    studies, labels, patients, keys = (tuple(fields[name]) for name in ("studies", "labels", "patients", "keys"))
    return TensorSet(studies, labels, patients, keys)


def _network(folder: Path, task: Mapping[str, Any], spec: ModelSpec, settings: TrainingSettings) -> nn.Module:
    """The network as the starter has it: its weights, adapters and what of it may train."""
    weights = load_file(folder / START)
    module = network_of(spec)
    if weights.keys() != module.state_dict().keys():
        add_adapters(module, settings.rank, settings.seed)
    module.load_state_dict(weights)
    for name, parameter in module.named_parameters():
        parameter.requires_grad = name in task["trainable"]
    return module


def _tell(folder: Path, record: EpochRecord) -> None:
    with (folder / EPOCHS).open("a", encoding="utf-8") as file:
        file.write(record.model_dump_json() + "\n")


def _asked_to_stop(folder: Path, starter: int) -> Callable[[], bool]:
    def asked() -> bool:
        return (folder / STOP).exists() or not _is_alive(starter)

    return asked


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
