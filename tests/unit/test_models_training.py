"""Training learns, repeats, resumes exactly, balances classes, rehearses old cases and stays near its start when told to."""

import copy
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.augmentation import AugmentationSettings, augment
from models.bundle import load_bundle, network_of, save_bundle
from models.data import TensorSet
from models.errors import TrainingFailed
from models.finetuning import finetune
from models.predictor import Predictor
from models.sampling import class_weights, plan_epoch, seeded
from models.scoring import accuracy, score
from models.spec import ModelSpec, PreprocessingSpec
from models.training import TrainingResult, TrainingSettings, train
from models.validation import validate

SPEC = ModelSpec(
    name="stripes",
    task="direction",
    classes=("across", "down", "none"),
    options={"width": 8},
    preprocessing=PreprocessingSpec(size=(32, 32), slices="evenly", max_images=2),
    modality="MR",
    seed=3,
)
QUICK = TrainingSettings(epochs=5, batch_size=16, device="cpu", precision="float32", patience=5)


def stripes(count: int, seed: int, *, contrast: float = 0.4, classes: tuple[int, ...] = (0, 1, 2)) -> TensorSet:
    """Noisy images with stripes across, stripes down, or none, one or two images a study."""
    generator = torch.Generator().manual_seed(seed)
    wave = torch.sin(torch.arange(32) * 1.2) * contrast
    patterns = (wave[:, None].expand(32, 32), wave[None].expand(32, 32), torch.zeros(32, 32))
    labels = tuple(classes[index % len(classes)] for index in range(count))
    studies = []
    for index, label in enumerate(labels):
        shades = 0.5 + patterns[label] + 0.1 * torch.randn(1 + index % 2, 1, 32, 32, generator=generator)
        studies.append((shades.clamp(0, 1) - 0.5) / 0.25)
    names = tuple(f"{seed}-{index}" for index in range(count))
    return TensorSet(tuple(studies), labels, names, names)


TRAIN, VALID = stripes(120, 1), stripes(24, 2)


def numbers(result: TrainingResult) -> list[dict[str, object]]:
    return [each.model_dump(exclude={"seconds"}) for each in result.history]


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def reference():
    """An uninterrupted run."""
    module = network_of(SPEC)
    return train(module, SPEC, TRAIN, VALID, QUICK), module


def test_training_learns(reference):
    result, module = reference
    assert [each.epoch for each in result.history] == [1, 2, 3, 4, 5]
    best = max(result.history, key=lambda each: -each.valid_loss)
    assert best.epoch == result.best_epoch
    assert best.macro_recall > 0.8
    assert not module.training


def test_the_same_seed_gives_the_same_run_and_another_seed_does_not(reference):
    state = torch.random.get_rng_state()
    again = network_of(SPEC)
    assert numbers(train(again, SPEC, TRAIN, VALID, QUICK)) == numbers(reference[0])
    assert same(weights(again), weights(reference[1]))
    assert torch.equal(torch.random.get_rng_state(), state)
    other = network_of(SPEC)
    assert numbers(train(other, SPEC, TRAIN, VALID, QUICK.model_copy(update={"seed": 1}))) != numbers(reference[0])


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run's own code may catch it."""


@pytest.mark.parametrize("batches", [0, 17, 47])
def test_a_killed_run_goes_on_exactly(reference, tmp_path, batches):
    asked = iter(range(1000))

    def kill() -> bool:
        if next(asked) == batches:
            raise Killed
        return False

    with pytest.raises(Killed):
        train(network_of(SPEC), SPEC, TRAIN, VALID, QUICK, checkpoint_dir=tmp_path, should_stop=kill)
    heard: list[int] = []
    module = network_of(SPEC)
    result = train(module, SPEC, TRAIN, VALID, QUICK, checkpoint_dir=tmp_path, on_epoch=lambda each: heard.append(each.epoch))
    assert numbers(result) == numbers(reference[0])
    assert result.best_epoch == reference[0].best_epoch
    assert same(weights(module), weights(reference[1]))
    assert heard == list(range(max(1, batches // 12), 6)), "the checkpoint's epoch is told again: its hook may not have heard of it"
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".pt", ".pkl"}]


KILLED_RUN = """
import os, runpy, signal, sys
from pathlib import Path
import torch
here = runpy.run_path(sys.argv[1])
torch.set_num_threads(int(sys.argv[3]))
asked = iter(range(1000))
here["train"](
    here["network_of"](here["SPEC"]), here["SPEC"], here["TRAIN"], here["VALID"], here["QUICK"], checkpoint_dir=Path(sys.argv[2]),
    should_stop=lambda: next(asked) == 29 and os.kill(os.getpid(), signal.SIGKILL),
)
"""


def test_a_run_that_sigkill_ended_goes_on_exactly(reference, tmp_path):
    command = [sys.executable, "-c", KILLED_RUN, __file__, str(tmp_path), str(torch.get_num_threads())]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00002"]
    module = network_of(SPEC)
    result = train(module, SPEC, TRAIN, VALID, QUICK, checkpoint_dir=tmp_path)
    assert numbers(result) == numbers(reference[0])
    assert same(weights(module), weights(reference[1]))


def test_a_volume_network_learns_its_training_set():
    spec = SPEC.model_copy(update={"preprocessing": PreprocessingSpec(size=(8, 32, 32))})
    flat = stripes(60, 41)
    volumes = tuple(study[:1, :, None].expand(1, 1, 8, 32, 32) for study in flat.studies)
    tensors = replace(flat, studies=volumes)
    settings = QUICK.model_copy(update={"epochs": 15, "augmentation": AugmentationSettings.off()})
    result = train(network_of(spec), spec, tensors, tensors, settings)
    assert max(each.macro_recall for each in result.history) > 0.9


def test_a_finished_run_is_not_run_again(reference, tmp_path):
    train(network_of(SPEC), SPEC, TRAIN, VALID, QUICK, checkpoint_dir=tmp_path)
    module = network_of(SPEC)
    result = train(module, SPEC, TRAIN, VALID, QUICK, checkpoint_dir=tmp_path, should_stop=lambda: True)
    assert numbers(result) == numbers(reference[0])
    assert same(weights(module), weights(reference[1]))


def test_a_stopped_run_says_so_and_can_go_on(reference, tmp_path):
    asked = iter(range(1000))
    stopped = train(network_of(SPEC), SPEC, TRAIN, VALID, QUICK, checkpoint_dir=tmp_path, should_stop=lambda: next(asked) >= 20)
    assert stopped.stopped_by == "request"
    assert len(stopped.history) == 1
    result = train(network_of(SPEC), SPEC, TRAIN, VALID, QUICK, checkpoint_dir=tmp_path)
    assert numbers(result) == numbers(reference[0])


def test_a_checkpoint_of_other_data_or_settings_or_a_damaged_one_is_refused(tmp_path):
    one = QUICK.model_copy(update={"epochs": 1})
    train(network_of(SPEC), SPEC, TRAIN, VALID, one, checkpoint_dir=tmp_path)
    with pytest.raises(TrainingFailed, match="another run"):
        train(network_of(SPEC), SPEC, stripes(48, 9), VALID, one, checkpoint_dir=tmp_path)
    with pytest.raises(TrainingFailed, match="another run"):
        train(network_of(SPEC), SPEC, TRAIN, VALID, QUICK, checkpoint_dir=tmp_path)
    (tmp_path / "epoch-00001" / "weights.safetensors").write_bytes(b"half")
    with pytest.raises(TrainingFailed, match="damaged"):
        train(network_of(SPEC), SPEC, TRAIN, VALID, one, checkpoint_dir=tmp_path)


def test_a_draft_of_a_killed_write_is_ignored_and_removed(tmp_path):
    one = QUICK.model_copy(update={"epochs": 1})
    (tmp_path / ".0123").mkdir()
    (tmp_path / ".0123" / "state.json").write_text(json.dumps({"fingerprint": "half"}))
    train(network_of(SPEC), SPEC, TRAIN, VALID, one, checkpoint_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00001"]


def test_the_first_validation_studies_count_as_much_as_all_others_together():
    module, cpu = network_of(SPEC), torch.device("cpu")
    few, many = stripes(6, 21), stripes(42, 22)
    both = TensorSet(*(getattr(few, name) + getattr(many, name) for name in ("studies", "labels", "patients", "keys")))
    alone = [validate(module, each, cpu, batch_size=16) for each in (few, many)]
    weighed = validate(module, both, cpu, batch_size=16, first=6)
    assert weighed == pytest.approx(tuple((one + other) / 2 for one, other in zip(*alone, strict=True)))
    assert validate(module, both, cpu, batch_size=16) != pytest.approx(weighed)
    for first in (0, 48, 60):
        assert validate(module, both, cpu, batch_size=16, first=first) == pytest.approx(validate(module, both, cpu, batch_size=16))


def test_patience_ends_a_run_that_gets_no_better():
    settings = QUICK.model_copy(update={"epochs": 30, "patience": 2, "head_learning_rate": 1e-9, "body_learning_rate": 1e-9})
    settings = settings.model_copy(update={"warmup_share": 0.0, "monitor": "macro_recall"})
    module = network_of(SPEC)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 0.0
    result = train(module, SPEC, TRAIN, VALID, settings)
    assert result.stopped_by == "patience"
    assert len(result.history) < 30


def test_a_loss_that_is_not_finite_fails():
    wild = QUICK.model_copy(update={"head_learning_rate": 1e30, "body_learning_rate": 1e30, "warmup_share": 0.0})
    with pytest.raises(TrainingFailed, match="not finite"):
        train(network_of(SPEC), SPEC, TRAIN, VALID, wild)


def test_empty_sets_and_wholly_frozen_networks_are_refused():
    empty = TRAIN.subset([])
    for pair in ((empty, VALID), (TRAIN, empty)):
        with pytest.raises(TrainingFailed, match="at least one"):
            train(network_of(SPEC), SPEC, *pair, QUICK)
    with pytest.raises(TrainingFailed, match="frozen"):
        train(network_of(SPEC).requires_grad_(False), SPEC, TRAIN, VALID, QUICK)


def test_the_balanced_sampler_evens_out_classes():
    labels = torch.tensor([0] * 950 + [1] * 50)
    plan = plan_epoch(labels, labels[:0], 50, 0.5, "sampler", seeded(0, 1))
    drawn = torch.cat([labels[new] for new, _ in plan]).float()
    assert len(plan) == 20
    assert 0.42 < float(drawn.mean()) < 0.58


def test_without_balancing_every_example_is_seen_once_an_epoch():
    labels = torch.arange(60) % 3
    plan = plan_epoch(labels, labels[:0], 20, 0.0, "none", seeded(0, 1))
    assert sorted(torch.cat([new for new, _ in plan]).tolist()) == list(range(60))


@pytest.mark.parametrize(("share", "expected"), [(0.5, 8), (0.25, 4), (0.99, 15), (0.0, 0)])
def test_rehearsal_takes_its_share_of_every_batch(share, expected):
    labels = torch.arange(30) % 3
    plan = plan_epoch(labels, labels, 16, share, "sampler", seeded(0, 1))
    assert {len(old) for _, old in plan} == {expected}
    assert {len(new) + len(old) for new, old in plan} == {16}


def test_class_weights_are_inverse_to_frequency():
    weights = class_weights(torch.tensor([0, 0, 0, 2]), 3)
    assert weights.tolist() == pytest.approx([2 / 3, 0, 2])


@pytest.fixture(scope="module")
def champion(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "1"
    return load_bundle(save_bundle(folder, SPEC, reference[1]).folder)


@pytest.mark.parametrize("strategy", ["head_only", "partial", "full"])
def test_finetuning_leaves_the_champion_alone_and_never_ends_worse_on_validation(champion, strategy):
    before = weights(champion.module)
    faint, valid = stripes(36, 11, contrast=0.15), stripes(24, 12, contrast=0.15)
    tuned = finetune(champion, faint, valid, QUICK, strategy, rehearsal=TRAIN)
    assert same(before, weights(champion.module))
    assert tuned.result.history[0].epoch == 0
    best = min(tuned.result.history, key=lambda each: each.valid_loss)
    assert best.epoch == tuned.result.best_epoch
    assert best.valid_loss <= tuned.result.history[0].valid_loss
    moved = {name for name, tensor in tuned.module.state_dict().items() if not torch.equal(tensor, before[name])}
    if strategy == "head_only":
        assert moved <= {"head.weight", "head.bias"}
    if strategy == "partial":
        assert not [name for name in moved if name.startswith(("features.0.", "features.1."))]


def test_finetuning_repairs_a_shift(champion):
    shifted, held_out = stripes(60, 21, contrast=-0.12), stripes(60, 22, contrast=-0.12)
    valid = stripes(30, 23, contrast=-0.12)
    settings = QUICK.model_copy(update={"epochs": 8, "augmentation": AugmentationSettings.off()})
    tuned = finetune(champion, shifted, valid, settings, "full", rehearsal=TRAIN)
    before = accuracy(score(Predictor(champion, "cpu"), held_out))
    after = accuracy(score(Predictor(replace(champion, module=tuned.module), "cpu"), held_out))
    assert after > before


def test_l2sp_keeps_the_weights_near_their_start(champion):
    other = stripes(60, 31, contrast=-0.3)

    def distance(l2sp: float) -> float:
        module = copy.deepcopy(champion.module)
        train(module, SPEC, other, other, QUICK.model_copy(update={"l2sp": l2sp, "epochs": 3}))
        pairs = zip(module.parameters(), champion.module.parameters(), strict=True)
        return sum(float((now - start).detach().square().sum()) for now, start in pairs)

    assert 0 < distance(10.0) < 0.8 * distance(0.0)


def test_scores_name_every_case(champion):
    cases = score(Predictor(champion, "cpu"), VALID)
    assert [case.case_key for case in cases] == list(VALID.keys)
    assert [case.truth for case in cases] == [SPEC.classes[label] for label in VALID.labels]
    assert all(case.predicted == max(case.probabilities, key=case.probabilities.__getitem__) for case in cases)


@pytest.mark.parametrize("shape", [(4, 1, 40, 24), (2, 1, 6, 20, 20)])
def test_augmentation_keeps_shape_and_range_and_follows_its_generator(shape):
    spec = PreprocessingSpec(size=shape[2:])
    images = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) - spec.mean) / spec.std
    settings = AugmentationSettings.for_study("MR", "HEAD")
    first, again, other = (augment(images, settings, spec, seeded(seed)) for seed in (1, 1, 2))
    assert first.shape == images.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    low, high = (0 - spec.mean) / spec.std, (1 - spec.mean) / spec.std
    assert low - 1e-5 <= float(first.min()) <= float(first.max()) <= high + 1e-5
    assert augment(images, AugmentationSettings.off(), spec, seeded(1)) is images


@pytest.mark.parametrize("modality", ["CR", "DX"])
def test_a_chest_film_is_never_flipped(modality):
    settings = AugmentationSettings.for_study(modality, "CHEST")
    assert not settings.flip
    spec = PreprocessingSpec(size=(32, 32), mean=0.0, std=1.0)
    left = torch.zeros(64, 1, 32, 32)
    left[..., :8] = 1.0
    moved = augment(left, settings, spec, seeded(5))
    assert bool((moved[..., :8].mean(dim=(1, 2, 3)) > moved[..., -8:].mean(dim=(1, 2, 3))).all())


def test_half_of_the_heads_are_flipped():
    settings = AugmentationSettings.off().model_copy(update={"flip": True})
    spec = PreprocessingSpec(size=(32, 32), mean=0.0, std=1.0)
    left = torch.zeros(200, 1, 32, 32)
    left[..., :8] = 1.0
    flipped = augment(left, settings, spec, seeded(5))[..., -8:].mean(dim=(1, 2, 3)) > 0.9
    assert 70 < int(flipped.sum()) < 130


def test_a_rotation_of_an_oblong_image_is_rigid():
    settings = AugmentationSettings.off().model_copy(update={"rotation_degrees": 40.0})
    spec = PreprocessingSpec(size=(32, 96), mean=0.0, std=1.0)
    rows, columns = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(96) - 47.5, indexing="ij")
    disc = ((rows**2 + columns**2) < 100).float()[None, None]
    assert float((augment(disc, settings, spec, seeded(3)) - disc).abs().mean()) < 0.01
