"""Every rung from a champion to a challenger: what it moves, what it must not move, and that it helps where it should."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import selection
from models.augmentation import AugmentationSettings
from models.bundle import LoadedModel, load_bundle, network_of, save_bundle
from models.data import TensorSet
from models.errors import TrainingFailed
from models.logits import macro_recall, study_logits
from models.networks import body_blocks, build_network
from models.remedies import EXECUTABLE, STRATEGIES, Hooks, RepairData, Repaired, RepairSettings, repair
from models.schedules import open_blocks
from models.spec import ModelSpec, PreprocessingSpec
from models.training import EpochRecord, TrainingSettings, train
from schemas.vocabulary import Remedy

CPU = torch.device("cpu")
SPEC = ModelSpec(
    name="stripes",
    task="direction",
    classes=("across", "down", "none"),
    options={"width": 8},
    preprocessing=PreprocessingSpec(size=(32, 32)),
    modality="MR",
    seed=3,
)
QUICK = TrainingSettings(
    epochs=4,
    batch_size=16,
    device="cpu",
    precision="float32",
    head_learning_rate=4e-3,
    body_learning_rate=2e-3,
    augmentation=AugmentationSettings.off(),
)


def stripes(
    count: int, seed: int, *, contrast: float = 0.4, gain: float = 1.0, lift: float = 0.0, prior: tuple[int, ...] = (0, 1, 2)
) -> TensorSet:
    """Noisy stripes across, down or none; `gain` and `lift` are another scanner's, `prior` the repeating order of classes."""
    generator = torch.Generator().manual_seed(seed)
    wave = torch.sin(torch.arange(32) * 1.2) * contrast
    patterns = (wave[:, None].expand(32, 32), wave[None].expand(32, 32), torch.zeros(32, 32))
    labels = tuple(prior[index % len(prior)] for index in range(count))
    images = [0.5 + patterns[label] + 0.1 * torch.randn(1, 1, 32, 32, generator=generator) for label in labels]
    names = tuple(f"{seed}-{index}" for index in range(count))
    return TensorSet(tuple(((image - 0.5) * gain + lift) / 0.25 for image in images), labels, names, names)


OLD, OLD_VALID, OLD_TEST = stripes(120, 1), stripes(45, 2), stripes(150, 3)
NOTHING = OLD.subset([])


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    module = network_of(SPEC)
    train(module, SPEC, OLD, OLD_VALID, QUICK.model_copy(update={"epochs": 6, "head_learning_rate": 2e-3}))
    return load_bundle(save_bundle(tmp_path_factory.mktemp("bundle") / "1", SPEC, module).folder)


def moved_data(count: int = 48, **shift: float) -> RepairData:
    new = stripes(count, 11, **shift)
    return RepairData(new, stripes(24, 12, **shift), OLD, OLD_VALID, stripes(60, 13, **shift))


def recall(of: Repaired | LoadedModel, tensors: TensorSet) -> float:
    cases = study_logits(of.module, tensors, CPU)
    return macro_recall(cases.probabilities(of.spec.calibration), cases.labels)


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(before: dict[str, torch.Tensor], after: torch.nn.Module) -> set[str]:
    now = after.state_dict()
    assert list(before) == [name for name in now if not name.startswith("harmonisation.")], "the network stays the same"
    return {name for name, tensor in now.items() if name in before and not torch.equal(tensor, before[name])}


FAR = {"lift": 0.5}


@pytest.mark.parametrize("remedy", EXECUTABLE)
def test_each_rung_moves_what_it_says_and_never_the_champion(champion, remedy):
    before = tensors_of(champion.module)
    settings = RepairSettings(training=QUICK.model_copy(update={"rank": 2}), search=False)
    made = repair(remedy, champion, moved_data(**FAR), settings)
    assert not moved(before, champion.module)
    changed = moved(before, made.module)
    statistics = {name for name in before if "running" in name}
    if remedy in {Remedy.RETHRESHOLD, Remedy.RECALIBRATE}:
        assert not changed
        assert made.spec.calibration != champion.spec.calibration
    elif remedy == Remedy.HARMONISE:
        assert not changed
        assert made.spec.harmonisation is not None
    elif remedy == Remedy.ADAPT_STATISTICS:
        assert changed == statistics
    elif remedy == Remedy.HEAD_ONLY:
        assert changed == {"head.weight", "head.bias"}
    elif remedy == Remedy.PARTIAL:
        assert changed >= {name for name in before if name.startswith(("features.2.", "features.3.", "head."))}
        assert not [name for name in changed if name.startswith(("features.0.", "features.1."))]
    elif remedy == Remedy.PARAMETER_EFFICIENT:
        convolutions = {name for name in before if name.startswith("features") and before[name].ndim == 4}
        assert changed == convolutions | {"head.weight", "head.bias"}
    else:
        assert changed == set(before), "every weight and every statistic trains"
    assert made.record
    saved = replace(champion, module=made.module, spec=made.spec)
    assert recall(saved, OLD_VALID) == recall(made, OLD_VALID)


@pytest.mark.parametrize("remedy", [Remedy.HEAD_ONLY, Remedy.PARTIAL, Remedy.PARAMETER_EFFICIENT, Remedy.GRADUAL, Remedy.FULL])
def test_training_rungs_repair_a_shift_and_keep_the_old(champion, remedy):
    data, unseen = moved_data(90, **FAR), stripes(150, 14, **FAR)
    made = repair(remedy, champion, data, RepairSettings(training=QUICK.model_copy(update={"epochs": 6, "rank": 4}), search=False))
    assert recall(champion, unseen) < 0.8
    assert recall(made, unseen) > recall(champion, unseen) + 0.1
    assert recall(made, OLD_TEST) > recall(champion, OLD_TEST) - 0.05


def test_statistics_repair_a_shift_of_intensity_without_labels(champion):
    shift = {"gain": 0.5}
    unseen = stripes(150, 15, **shift)
    made = repair(Remedy.ADAPT_STATISTICS, champion, moved_data(**shift), RepairSettings(training=QUICK))
    assert recall(champion, unseen) < 0.8
    assert recall(made, unseen) > recall(champion, unseen) + 0.1
    assert made.record["statistics"]["share"] > 0
    candidates = made.record["statistics"]["candidates"]
    assert {"0.0", "0.5", "1.0"} < set(candidates) <= {"0.0", "0.25", "0.5", "0.75", "1.0"}
    costs = {share: each["cost"] for share, each in candidates.items()}
    assert costs[str(made.record["statistics"]["share"])] == min(costs.values())


def test_statistics_stay_where_nothing_changed(champion):
    made = repair(Remedy.ADAPT_STATISTICS, champion, moved_data(), RepairSettings(training=QUICK))
    assert recall(made, OLD_TEST) >= recall(champion, OLD_TEST) - 0.02


def test_a_network_without_batch_statistics_stays_as_it_is(champion):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 3))
    made = repair(Remedy.ADAPT_STATISTICS, replace(champion, module=module), moved_data(), RepairSettings(training=QUICK))
    assert made.unchanged
    assert "no BatchNorm" in made.record["statistics"]["note"]


def test_recalibration_follows_another_mix(champion):
    many = {"contrast": 0.12, "prior": (2, 2, 2, 2, 2, 2, 2, 0, 1, 2)}
    data = RepairData(
        stripes(60, 21, **many), stripes(20, 22, **many), NOTHING, stripes(60, 24, contrast=0.12), stripes(200, 23, **many)
    )
    made = repair(Remedy.RECALIBRATE, champion, data, RepairSettings(training=QUICK))
    assert made.record["calibration"]["unlabelled_studies"] == 200
    assert made.record["calibration"]["priors"]["em"][2] > 0.55


def test_a_repair_that_cannot_be_carried_out_says_so(champion):
    with pytest.raises(TrainingFailed, match="changes no model"):
        repair(Remedy.FIX_FEED, champion, moved_data(), RepairSettings(training=QUICK))
    without = replace(moved_data(), old_valid=NOTHING)
    with pytest.raises(TrainingFailed, match="held-out old cases"):
        repair(Remedy.RETHRESHOLD, champion, without, RepairSettings(training=QUICK))


def test_a_search_chooses_the_share_on_held_out_cases_and_trains_once_where_nothing_is_forgotten(champion):
    said: list[str] = []
    epochs: list[int] = []
    settings = RepairSettings(training=QUICK.model_copy(update={"epochs": 3}), attempts=4)
    hooks = Hooks(say=said.append, on_epoch=lambda each: epochs.append(each.epoch))
    made = repair(Remedy.FULL, champion, moved_data(**FAR), settings, hooks)
    penalties, mixed = made.record["penalties"], made.record["interpolation"]
    assert list(penalties["candidates"]) == ["distillation"]
    shares = {share: each["cost"] for share, each in mixed["candidates"].items()}
    assert shares[str(mixed["share"])] == min(shares.values())
    assert mixed["candidates"][str(mixed["share"])]["forgotten"] == 0
    assert epochs == [0, 1, 2, 3]
    assert not said


def test_after_a_training_the_boundary_lies_where_it_lay_on_old_cases(champion, monkeypatch):
    """Each class keeps its share of the decisions on old cases, rehearsed and held-out ones, and no label of theirs is asked."""
    monkeypatch.setattr(selection, "DEAR", 1e3)
    faint = replace(moved_data(**FAR), old=stripes(120, 31, contrast=0.2), old_valid=stripes(45, 32, contrast=0.2))
    made = repair(Remedy.FULL, champion, faint, RepairSettings(training=QUICK.model_copy(update={"epochs": 3})))
    held = made.record["boundary"]
    assert held["cases"] == len(OLD) + len(OLD_VALID)
    assert held["shares"]["moved"] != pytest.approx(held["shares"]["before"], abs=1e-3)
    assert held["shares"]["held"] == pytest.approx(held["shares"]["before"], abs=5e-3)
    assert made.spec == champion.spec.model_copy(update={"calibration": made.spec.calibration})
    assert made.spec.calibration.offsets == pytest.approx(held["offsets"], abs=1e-3)


def test_a_boundary_that_the_new_cases_need_elsewhere_is_left_there(champion, monkeypatch):
    monkeypatch.setattr(selection, "DEAR", -1e3)
    made = repair(Remedy.FULL, champion, moved_data(**FAR), RepairSettings(training=QUICK.model_copy(update={"epochs": 2})))
    assert "boundary" not in made.record
    assert made.spec == champion.spec


def test_where_old_classes_would_pay_the_next_penalty_is_tried(champion, monkeypatch):
    """With a tolerance that nothing keeps every penalty is tried, and the one that costs least is taken."""
    monkeypatch.setattr(selection, "TOLERANCE", -0.5)
    said: list[str] = []
    settings = RepairSettings(training=QUICK.model_copy(update={"epochs": 2}), attempts=3)
    made = repair(Remedy.FULL, champion, moved_data(**FAR), settings, Hooks(say=said.append))
    candidates = made.record["penalties"]["candidates"]
    assert list(candidates) == ["distillation", "l2sp", "ewc"]
    assert all(each["forgotten"] > 0 for each in candidates.values())
    assert said == [f"old classes would pay for it; training anew with {name}" for name in ("l2sp", "ewc")]
    costs = {name: each["cost"] for name, each in candidates.items()}
    assert costs[made.record["penalties"]["chosen"]] == min(costs.values())


def test_a_penalty_that_is_ordered_is_not_searched_for_but_its_share_is(champion):
    settings = RepairSettings(training=QUICK.model_copy(update={"epochs": 1, "ewc": 0.3}), attempts=3)
    made = repair(Remedy.PARTIAL, champion, moved_data(**FAR), settings)
    assert list(made.record["penalties"]["candidates"]) == ["as ordered"]
    assert made.unchanged or len(made.record["interpolation"]["candidates"]) > 1


def test_a_line_of_repairs_is_held_to_what_its_first_version_knew(champion):
    """The recalls of old classes travel with the bundle: a later repair is compared with the best of its line."""
    settings = RepairSettings(training=QUICK.model_copy(update={"epochs": 1}), search=False)
    first = repair(Remedy.HEAD_ONLY, champion, moved_data(**FAR), settings)
    assert first.record["reference"] == dict.fromkeys(SPEC.classes, 1.0)
    module = copy.deepcopy(champion.module)
    with torch.no_grad():
        module.head.bias += torch.tensor([0.0, 0.0, 30.0])
    line = replace(champion, training={"choices": first.record}, module=module)
    assert repair(Remedy.HEAD_ONLY, line, moved_data(**FAR), settings).record["reference"] == first.record["reference"]
    alone = repair(Remedy.HEAD_ONLY, replace(line, training={}), moved_data(**FAR), settings).record["reference"]
    assert alone == {"across": 0.0, "down": 0.0, "none": 1.0}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run's own code may catch it."""


@pytest.mark.parametrize("remedy", [Remedy.GRADUAL, Remedy.PARAMETER_EFFICIENT])
def test_a_killed_repair_goes_on_exactly(champion, tmp_path: Path, remedy):
    settings = RepairSettings(training=QUICK.model_copy(update={"epochs": 2, "average": 0.9, "rank": 2}))
    data = moved_data(32, **FAR)
    whole = repair(remedy, champion, data, settings)
    asked = iter(range(10_000))

    def kill() -> bool:
        if next(asked) == 6:
            raise Killed
        return False

    with pytest.raises(Killed):
        repair(remedy, champion, data, settings, Hooks(should_stop=kill, checkpoint_dir=tmp_path))
    again = repair(remedy, champion, data, settings, Hooks(checkpoint_dir=tmp_path))
    assert not moved(tensors_of(whole.module), again.module)
    assert again.record == whole.record


@pytest.mark.parametrize("damaged", [False, True])
def test_checkpoints_that_cannot_be_used_are_put_away_and_the_training_begins_anew(champion, tmp_path: Path, damaged):
    """Such as those that an earlier version of the software wrote, whose settings were others."""
    settings = RepairSettings(training=QUICK.model_copy(update={"epochs": 1}), search=False)
    data, said = moved_data(32, **FAR), list[str]()
    other = settings.model_copy(update={"training": settings.training.model_copy(update={"weight_decay": 0.01})})
    repair(Remedy.HEAD_ONLY, champion, data, settings if damaged else other, Hooks(checkpoint_dir=tmp_path))
    if damaged:
        next(tmp_path.glob("*/epoch-*/weights.safetensors")).write_bytes(b"half")
    made = repair(Remedy.HEAD_ONLY, champion, data, settings, Hooks(checkpoint_dir=tmp_path, say=said.append))
    fresh = repair(Remedy.HEAD_ONLY, champion, data, settings)
    assert not moved(tensors_of(fresh.module), made.module)
    assert len(said) == 1
    assert said[0].endswith("; the training begins anew")


def test_gradual_unfreezing_trains_each_block_from_the_epoch_that_opens_it_and_none_before(champion):
    """Weights and statistics: an optimiser that was made before a block was opened would leave its weights for ever."""
    module, data, seen = copy.deepcopy(champion.module), moved_data(32, **FAR), list[tuple[set[str], set[str]]]()
    before = tensors_of(module)

    def look(_: EpochRecord) -> None:
        changed = moved(before, module)
        before.update(tensors_of(module))
        seen.append(tuple({name.split(".")[1] for name in changed if name.endswith(end)} for end in (".0.weight", "running_mean")))

    settings = QUICK.model_copy(
        update={"epochs": 8, "patience": 8, "unfreezing": "gradual", "warmup_share": 0.0, "schedule": "constant"}
    )
    train(module, SPEC, data.new, data.new_valid, settings, on_epoch=look)
    blocks = [str(place) for place in range(len(body_blocks(module)))]
    expected = [set(blocks[len(blocks) - open_blocks(epoch, 8, len(blocks)) :]) for epoch in range(1, 9)]
    assert seen == [(each, each) for each in expected]
    assert expected[0] == set(), "the first epoch trains the head alone"
    assert expected[-1] == set(blocks), "the last ones train everything"


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "inception_v3", "densenet121", "vgg16"])
@pytest.mark.parametrize("strategy", [each for each in STRATEGIES.values() if each in {"head_only", "partial"}])
def test_frozen_layers_of_real_networks_rest_with_their_statistics(name, strategy):
    from models.freezing import freeze, train_mode
    from models.networks import head_parameters

    size = 96 if name == "inception_v3" else 64
    module = build_network(name, 2, 1)
    before = tensors_of(module)
    freeze(module, strategy)
    train_mode(module)
    optimizer = torch.optim.SGD([each for each in module.parameters() if each.requires_grad], lr=0.01)
    module(torch.randn(2, 1, size, size)).square().sum().backward()
    optimizer.step()
    changed = moved(before, module)
    heads = {id(each) for each in head_parameters(module)}
    own = {name for name, each in module.named_parameters() if id(each) in heads}
    assert changed & own
    if strategy == "head_only":
        assert changed <= own
    else:
        blocks = body_blocks(module)
        still = {id(tensor) for block in blocks[: len(blocks) // 2] for tensor in block.state_dict(keep_vars=True).values()}
        assert still
        assert not [name for name, tensor in module.state_dict(keep_vars=True).items() if name in changed and id(tensor) in still]
