"""Training on several devices from one call: two processes with gloo on the CPU."""

import copy

import numpy as np
import pytest
import torch

from models.bundle import load_bundle as load
from models.bundle import network_of, save_bundle
from models.data import TensorSet
from models.errors import TrainingFailed
from models.finetuning import finetune
from models.launch import train
from models.spec import ModelSpec, PreprocessingSpec
from models.training import TrainingSettings

SPEC = ModelSpec(
    name="m", task="t", classes=("a", "b"), options={"width": 4}, preprocessing=PreprocessingSpec(size=(16, 16)), modality="MR"
)
SETTINGS = TrainingSettings(
    epochs=3, batch_size=8, head_learning_rate=1e-2, body_learning_rate=1e-2, device="cpu", devices=2, patience=10
)


def dataset(count: int, seed: int) -> TensorSet:
    """Images that are bright on the left or on the right."""
    random = np.random.default_rng(seed)
    studies = []
    for index in range(count):
        image = random.normal(0, 0.3, (1, 1, 16, 16))
        image[..., :8] += 1.5 * (index % 2)
        studies.append(torch.tensor(image, dtype=torch.float32))
    names = tuple(f"{seed}-{index}" for index in range(count))
    return TensorSet(tuple(studies), tuple(index % 2 for index in range(count)), names, names)


TRAIN, VALID = dataset(32, 1), dataset(16, 2)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_one_call_trains_in_two_processes_and_takes_the_best_weights_over(tmp_path):
    module, heard = network_of(SPEC), []
    before = copy.deepcopy(module.state_dict())
    result = train(module, SPEC, TRAIN, VALID, SETTINGS, on_epoch=heard.append, checkpoint_dir=tmp_path / "final")
    assert [record.epoch for record in heard] == [1, 2, 3]
    assert tuple(heard) == result.history
    assert result.stopped_by == "epochs"
    assert not module.training
    assert any(not torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["epoch-00003"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"], "no image stays on disk"
    again = train(
        network_of(SPEC), SPEC, TRAIN, VALID, SETTINGS.model_copy(update={"devices": 1}), checkpoint_dir=tmp_path / "final"
    )
    assert again.history == result.history, "a run may be taken up with another number of devices"


def test_adapters_are_trained_in_two_processes_and_frozen_parts_stay(tmp_path):
    save_bundle(tmp_path / "bundle", SPEC, network_of(SPEC))
    champion = load(tmp_path / "bundle")
    tuned = finetune(champion, TRAIN, VALID, SETTINGS.model_copy(update={"epochs": 1, "rank": 2}), "adapters", rehearsal=VALID)
    assert list(tuned.module.state_dict()) == list(champion.module.state_dict())
    assert [record.epoch for record in tuned.result.history] == [0, 1]


def test_what_the_processes_cannot_do_is_told_by_its_reason():
    with pytest.raises(TrainingFailed, match="multiple of 3"):
        train(network_of(SPEC), SPEC, TRAIN, VALID, SETTINGS.model_copy(update={"devices": 3}))
    with pytest.raises(TrainingFailed, match="every parameter is frozen"):
        train(network_of(SPEC).requires_grad_(requires_grad=False), SPEC, TRAIN, VALID, SETTINGS)


def test_what_a_hook_raises_leaves_no_process_behind():
    class Stopped(BaseException):
        pass

    def leave(_: object) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train(network_of(SPEC), SPEC, TRAIN, VALID, SETTINGS.model_copy(update={"epochs": 5000}), on_epoch=leave)
