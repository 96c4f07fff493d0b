"""Training on several devices from one call: this process starts `torchrun`, hears of each epoch and takes the weights over.

The processes meet the caller in a folder: it holds the task, a line for each epoch, a file that asks them to stop, and at the
end the outcome. They end when asked, and when the process that started them is gone.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Unpack

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models import training
from models.checkpoint import snapshot
from models.data import TensorSet
from models.distributed import check_batch, world
from models.errors import TrainingFailed, UnusableCheckpoint
from models.predictor import choose_device
from models.spec import ModelSpec
from models.training import Ties, TrainingResult
from models.training_settings import EpochRecord, TrainingSettings

TASK, SETS, START, EPOCHS, STOP, WEIGHTS, RESULT, FAULT = (
    "task.json",
    "sets.pt",
    "start.safetensors",
    "epochs.jsonl",
    "stop",
    "weights.safetensors",
    "result.json",
    "fault.json",
)
POLL_S = 0.1
GRACE_S = 10.0
"""Time that processes have to end by themselves before they are killed."""


def train(
    module: nn.Module,
    spec: ModelSpec,
    train_set: TensorSet,
    valid_set: TensorSet,
    settings: TrainingSettings,
    **ties: Unpack[Ties],
) -> TrainingResult:
    """As `models.training.train`, on `settings.devices` devices: here where it is one, else in as many processes.

    Raises TrainingFailed as that does, and where there are not so many GPUs or a process ends without an outcome.
    """
    if settings.devices == 1 or world()[1] > 1:
        return training.train(module, spec, train_set, valid_set, settings, **ties)
    _require_devices(settings)
    sets, checkpoint_dir = (train_set, valid_set, ties.get("rehearsal")), ties.get("checkpoint_dir")
    report, stop = ties.get("on_epoch") or (lambda _: None), ties.get("should_stop") or (lambda: False)
    near = checkpoint_dir.parent if checkpoint_dir is not None else None
    if near is not None:
        near.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".training-", dir=near) as place:
        folder = Path(place)
        _hand_over(folder, module, spec, sets, settings, checkpoint_dir)
        with _processes(folder, settings) as running:
            _follow(folder, running, report, stop)
        return _outcome(folder, module, running)


def _require_devices(settings: TrainingSettings) -> None:
    size = settings.devices
    check_batch(settings.batch_size, size)
    if choose_device(settings.device).type == "cuda" and torch.cuda.device_count() < size:
        raise TrainingFailed(f"{size} devices were asked for, and this machine has {torch.cuda.device_count()} GPUs")


def _hand_over(
    folder: Path,
    module: nn.Module,
    spec: ModelSpec,
    sets: tuple[TensorSet | None, ...],
    settings: TrainingSettings,
    checkpoints: Path | None,
) -> None:
    task = {
        "spec": spec.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "trainable": [name for name, parameter in module.named_parameters() if parameter.requires_grad],
        "checkpoints": str(checkpoints.absolute()) if checkpoints is not None else None,
        "starter": os.getpid(),
    }
    (folder / TASK).write_text(json.dumps(task), encoding="utf-8")
    save_file(snapshot(module), folder / START)
    torch.save([_plain(each) for each in sets], folder / SETS)


def _plain(tensors: TensorSet | None) -> dict[str, object] | None:
    """What training needs of a set, in types that can be read back without executing anything."""
    if tensors is None:
        return None
    return {
        "studies": list(tensors.studies),
        "labels": list(tensors.labels),
        "patients": list(tensors.patients),
        "keys": list(tensors.keys),
    }


@contextmanager
def _processes(folder: Path, settings: TrainingSettings) -> Iterator[subprocess.Popen[bytes]]:
    """The running group; at the end it is gone, whatever happens here."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(settings.devices)]
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // settings.devices)))
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")]).strip(
        os.pathsep
    )
    if choose_device(settings.device).type == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*command, "-m", "models.launched", str(folder)], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield running
        finally:
            _end(folder, running)


def _end(folder: Path, running: subprocess.Popen[bytes]) -> None:
    if running.poll() is None:
        (folder / STOP).touch()
        try:
            running.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


def _follow(
    folder: Path, running: subprocess.Popen[bytes], report: Callable[[EpochRecord], None], stop: Callable[[], bool]
) -> None:
    """Report each epoch as it is written, until the processes end; ask them to when the caller is asked."""
    told = 0
    while True:
        ended = running.poll() is not None
        records = _records(folder)
        for record in records[told:]:
            report(record)
        told = len(records)
        if ended:
            return
        if stop():
            (folder / STOP).touch()
        time.sleep(POLL_S)


def _records(folder: Path) -> list[EpochRecord]:
    try:
        text = (folder / EPOCHS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    # What comes after the last line's end is being written.
    return [EpochRecord.model_validate_json(line) for line in text.split("\n")[:-1]]


def _outcome(folder: Path, module: nn.Module, running: subprocess.Popen[bytes]) -> TrainingResult:
    if (folder / FAULT).is_file():
        fault = json.loads((folder / FAULT).read_text(encoding="utf-8"))
        kind = UnusableCheckpoint if fault.get("kind") == UnusableCheckpoint.__name__ else TrainingFailed
        raise kind(fault["reason"])
    if running.returncode != 0 or not (folder / RESULT).is_file():
        last = (folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise TrainingFailed(f"a training process ended with {running.returncode} and without an outcome: {''.join(last)[:200]}")
    document = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    module.load_state_dict(load_file(folder / WEIGHTS))
    module.eval()
    history = tuple(EpochRecord.model_validate(each) for each in document["history"])
    return TrainingResult(history, document["best_epoch"], document["stopped_by"])
