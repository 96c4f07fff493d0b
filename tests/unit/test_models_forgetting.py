"""What keeps a network from forgetting: each means does what it says, alone and in a training."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models.bundle import network_of
from models.errors import TrainingFailed
from models.forgetting import anchor_of, averaging, frozen_copy, importance
from models.interpolation import between
from models.logits import macro_recall, study_logits
from models.reservoir import choose_reservoir, vectors_of
from models.sampling import Examples
from models.selection import Jury
from models.spec import Calibration
from models.training import train
from tests.model_blobs import QUICK as BASE
from tests.model_blobs import SPEC, blobs

CPU = torch.device("cpu")
QUICK = BASE.model_copy(update={"epochs": 3, "rehearsal_share": 0.25, "schedule": "constant"})
OLD = blobs(64, 1)


@pytest.fixture(scope="module")
def start() -> nn.Module:
    module = network_of(SPEC)
    train(module, SPEC, OLD, OLD, QUICK.model_copy(update={"epochs": 4}))
    return module


def trained(start: nn.Module, **changes: float) -> nn.Module:
    module = copy.deepcopy(start)
    other = blobs(32, 3, bright=-1.5, swapped=False)
    train(module, SPEC, other, other, QUICK.model_copy(update=changes), rehearsal=OLD)
    return module


def far(start: nn.Module, module: nn.Module) -> float:
    return sum(float((a - b).detach().square().sum()) for a, b in zip(start.parameters(), module.parameters(), strict=True))


def disagreement(start: nn.Module, module: nn.Module) -> float:
    before, after = (study_logits(each, OLD, CPU).probabilities() for each in (start, module))
    return float(np.abs(before - after).mean())


def test_pulls_keep_the_weights_nearer_and_distillation_the_answers(start):
    free = trained(start)
    assert far(start, trained(start, l2sp=3.0)) < 0.7 * far(start, free)
    assert far(start, trained(start, ewc=3.0)) < 0.9 * far(start, free)
    assert disagreement(start, trained(start, distillation=5.0)) < disagreement(start, free)


def test_ewc_without_old_cases_is_refused(start):
    with pytest.raises(TrainingFailed, match="old cases"):
        train(copy.deepcopy(start), SPEC, OLD, OLD, QUICK.model_copy(update={"ewc": 1.0}))


def test_importance_is_greatest_where_the_old_answers_turn_on_it(start):
    module = copy.deepcopy(start)
    pairs = anchor_of(module).pairs
    weights = importance(module, [parameter for parameter, _ in pairs], Examples.of(OLD), CPU, 0)
    total = sum(float(weight.sum()) for weight in weights)
    assert total == pytest.approx(sum(weight.numel() for weight in weights), rel=1e-3)
    assert all(float(weight.min()) >= 0 for weight in weights)
    again = importance(module, [parameter for parameter, _ in pairs], Examples.of(OLD), CPU, 0)
    assert all(torch.equal(first, second) for first, second in zip(weights, again, strict=True))


def test_the_distance_counts_only_what_trains(start):
    module = copy.deepcopy(start)
    module.features.requires_grad_(requires_grad=False)
    anchor = anchor_of(module)
    assert float(anchor.distance()) == 0
    with torch.no_grad():
        module.head.bias += 2.0
        next(module.features.parameters()).add_(1.0)
    assert float(anchor.distance()) == pytest.approx(8.0)


def test_a_teacher_of_fewer_classes_teaches_those_it_knows(start):
    anchor = anchor_of(start)
    anchor.teacher = frozen_copy(start)
    images = torch.cat(OLD.studies[:4])
    known = start.eval()(images).detach()
    wider = torch.cat([known, torch.full((4, 1), 9.0)], dim=1)
    assert float(anchor.disagreement(images, wider)) == pytest.approx(0.0, abs=1e-5)


def test_the_average_lags_behind_and_arrives(start):
    module = copy.deepcopy(start)
    average = averaging(module, 0.9)
    before = module.head.bias.detach().clone()
    with torch.no_grad():
        module.head.bias += 1.0
    average.update(module)
    early = average.values["head.bias"] - before
    assert bool((early > 0).all())
    for _ in range(200):
        average.update(module)
    assert torch.allclose(average.values["head.bias"], module.head.bias, atol=1e-3)
    assert averaging(module, 0.0) is None


def test_an_averaged_run_keeps_the_average_and_resumes_exactly(start, tmp_path):
    settings = QUICK.model_copy(update={"average": 0.8, "epochs": 3, "schedule": "plateau", "plateau_patience": 1})
    whole, stopped = copy.deepcopy(start), copy.deepcopy(start)
    other = blobs(32, 4, bright=0.6)
    train(whole, SPEC, other, other, settings, rehearsal=OLD)
    asked = iter(range(1000))
    train(stopped, SPEC, other, other, settings, rehearsal=OLD, checkpoint_dir=tmp_path, should_stop=lambda: next(asked) >= 4)
    resumed = copy.deepcopy(start)
    train(resumed, SPEC, other, other, settings, rehearsal=OLD, checkpoint_dir=tmp_path)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in resumed.state_dict().items())


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_interpolation_is_a_straight_line_and_touches_neither_end(start, share):
    new = trained(start)
    ends = [copy.deepcopy(each.state_dict()) for each in (start, new)]
    mixed = between(start, new, share).state_dict()
    for name, tensor in mixed.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, ends[0][name] * (1 - share) + ends[1][name] * share, atol=1e-6)
    assert all(
        torch.equal(each.state_dict()[name], end[name]) for each, end in zip((start, new), ends, strict=True) for name in end
    )


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(1, 60), st.integers(0, 3))
def test_the_reservoir_is_bounded_even_and_repeats(labels, most, seed):
    vectors = np.random.default_rng(seed).normal(size=(len(labels), 3))
    chosen = choose_reservoir(vectors, labels, most, seed)
    assert len(chosen) == len(set(chosen)) == min(most, len(labels))
    assert chosen == choose_reservoir(vectors, labels, most, seed) == sorted(chosen)
    counts = {label: sum(labels[place] == label for place in chosen) for label in set(labels)}
    least = min(counts.values())
    assert all(count <= max(least + 1, 1) or counts_all(labels, counts, least) for count in counts.values())


def counts_all(labels: list[int], counts: dict[int, int], least: int) -> bool:
    """Uneven only because the smaller class has no more cases."""
    return all(count == labels.count(label) for label, count in counts.items() if count == least)


def test_the_reservoir_covers_what_is_rare():
    """Ten of 500 cases of a class look otherwise; a random choice of 20 would hold 0.4 of them in the mean."""
    random = np.random.default_rng(0)
    vectors = np.concatenate([random.normal(size=(490, 4)), random.normal(size=(10, 4)) * 0.3 + 12])
    chosen = choose_reservoir(vectors, [0] * 500, 20, 0)
    assert 1 <= sum(place >= 490 for place in chosen) <= 10


def test_vectors_are_what_the_head_sees(start):
    vectors = vectors_of(start, OLD, CPU)
    assert vectors.shape == (64, 32)
    logits = torch.tensor(vectors).float() @ start.head.weight.T + start.head.bias
    assert np.allclose(logits.detach().numpy(), study_logits(start, OLD, CPU).logits, atol=1e-5)


def test_the_jury_makes_the_loss_of_an_old_class_dear(start):
    new, old = blobs(20, 5, bright=-1.5), blobs(40, 6)
    jury = Jury(start, Calibration(), new, old, CPU)
    same = jury.judge(start)
    assert same.worst_old_class == 0.0
    biased = copy.deepcopy(start)
    with torch.no_grad():
        biased.head.bias += torch.tensor([50.0, 0.0])
    worse = jury.judge(biased)
    assert worse.worst_old_class > 0.9
    assert worse.cost > same.cost + 4
    assert macro_recall(study_logits(start, old, CPU).probabilities(), np.array(old.labels)) == same.old_recall
    assert replace(same, cost=0.0).cost == 0.0
