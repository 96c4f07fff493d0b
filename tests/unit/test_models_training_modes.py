"""The loop's modes: parts of batches, precisions, layouts, schedules, losses, several processes."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.bundle import network_of
from models.errors import TrainingFailed
from models.forgetting import Anchor
from models.objective import Objective
from models.schedules import halvings, open_blocks, rate_factor
from models.training import EpochRecord, train
from tests.model_blobs import QUICK as BASE
from tests.model_blobs import SPEC, blobs

QUICK = BASE.model_copy(update={"balance": "none", "head_learning_rate": 1e-2, "body_learning_rate": 1e-2})
NOISY = {"bright": 1.0, "noise": 0.5}
TRAIN, VALID = blobs(64, 1, **NOISY), blobs(32, 2, **NOISY)


def run(module: nn.Module, **changes: object) -> dict[str, torch.Tensor]:
    train(module, SPEC, TRAIN, VALID, QUICK.model_copy(update=changes))
    return module.state_dict()


def still(module: nn.Module) -> nn.Module:
    """Without BatchNorm, whose statistics depend on the size of a part."""
    for name, each in list(module.named_modules()):
        if isinstance(each, nn.BatchNorm2d):
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, nn.Identity())
    return module


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_a_batch_in_parts_trains_like_the_whole(parts):
    whole, divided = (run(still(network_of(SPEC)), accumulation=each) for each in (1, parts))
    assert max(float((whole[name] - divided[name]).abs().max()) for name in whole) < 2e-3
    assert any(not torch.equal(whole[name], start) for name, start in still(network_of(SPEC)).state_dict().items())


@pytest.mark.parametrize(
    "changes", [{"precision": "bfloat16"}, {"channels_last": True}, {"focal_gamma": 2.0}, {"balance": "weights"}]
)
def test_each_mode_learns(changes):
    module = network_of(SPEC)
    result = train(module, SPEC, TRAIN, VALID, QUICK.model_copy(update={"epochs": 10, **changes}))
    assert max(each.macro_recall for each in result.history) > 0.9
    assert all(tensor.is_contiguous() for tensor in result_tensors(module)) or changes.get("channels_last")
    assert all(tensor.dtype == torch.float32 for tensor in result_tensors(module))


def result_tensors(module: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]


def test_channels_last_gives_the_same_numbers_but_for_rounding():
    plain, last = (run(network_of(SPEC), channels_last=each) for each in (False, True))
    assert max(float((plain[name] - last[name]).abs().max()) for name in plain if plain[name].is_floating_point()) < 5e-2


@pytest.mark.parametrize("changes", [{"channels_last": True}, {"channels_last": True, "average": 0.9, "schedule": "plateau"}])
def test_a_run_in_another_layout_resumes_exactly(tmp_path, changes):
    whole, half, rest = (network_of(SPEC) for _ in range(3))
    settings = QUICK.model_copy(update={"epochs": 3, **changes})
    expected = train(whole, SPEC, TRAIN, VALID, settings)
    steps = iter(range(1000))
    stopped = train(half, SPEC, TRAIN, VALID, settings, checkpoint_dir=tmp_path, should_stop=lambda: next(steps) >= 6)
    assert (stopped.stopped_by, len(stopped.history)) == ("request", 1)
    found = train(rest, SPEC, TRAIN, VALID, settings, checkpoint_dir=tmp_path)
    assert [each.valid_loss for each in found.history] == [each.valid_loss for each in expected.history]
    assert all(torch.equal(tensor, rest.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_on_a_cpu_precision_is_float32_unless_it_is_asked_for():
    auto, full, half = (run(network_of(SPEC), precision=each) for each in ("auto", "float32", "bfloat16"))
    assert all(torch.equal(auto[name], full[name]) for name in auto)
    assert any(not torch.equal(auto[name], half[name]) for name in auto)


def objective(**changes: object) -> Objective:
    return Objective(QUICK.model_copy(update=changes), Anchor([]))


def test_focal_loss_is_the_papers():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 0, 1])
    each = functional.cross_entropy(logits, labels, reduction="none")
    right = (-each).exp()
    assert float(objective(focal_gamma=2.0).classification(logits, labels)) == pytest.approx(
        float(((1 - right) ** 2 * each).mean())
    )
    assert float(objective().classification(logits, labels)) == pytest.approx(float(each.mean()))
    weights = torch.tensor([1.0, 3.0])
    weighed = Objective(QUICK.model_copy(update={"focal_gamma": 1e-9}), Anchor([]), weights).classification(logits, labels)
    assert float(weighed) == pytest.approx(float(functional.cross_entropy(logits, labels, weight=weights)), rel=1e-5)


def history(*losses: float) -> list[EpochRecord]:
    return [
        EpochRecord(epoch=index + 1, train_loss=None, valid_loss=loss, accuracy=0, macro_recall=0, seconds=0)
        for index, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [((), 0), ((1.0, 0.9), 0), ((1.0, 1.1), 0), ((1.0, 1.1, 1.1), 1), ((1.0, 1.1, 0.9, 1.0, 1.0, 1.0, 1.0), 2)],
)
def test_a_plateau_halves_the_rates(losses, expected):
    settings = QUICK.model_copy(update={"schedule": "plateau", "plateau_patience": 2})
    assert halvings(history(*losses), settings) == expected
    assert rate_factor(settings, 5, 10, history(*losses)) == 0.5**expected


def test_the_cosine_rises_and_falls_to_zero():
    settings = QUICK.model_copy(update={"warmup_share": 0.2})
    factors = [rate_factor(settings, step, 100, []) for step in range(100)]
    assert factors[:20] == sorted(factors[:20])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[0] == pytest.approx(0.05)
    assert max(factors) == 1.0
    assert factors[-1] < 0.01
    assert {rate_factor(settings.model_copy(update={"schedule": "constant"}), step, 100, []) for step in range(20, 100)} == {1.0}


@pytest.mark.parametrize(("epochs", "blocks"), [(2, 4), (8, 4), (20, 13), (3, 1), (1, 5)])
def test_gradual_unfreezing_opens_from_none_to_all(epochs, blocks):
    opened = [open_blocks(epoch, epochs, blocks) for epoch in range(1, epochs + 1)]
    assert opened[0] == 0
    assert opened == sorted(opened)
    assert epochs == 1 or opened[-1] == blocks


WORK = """
import sys
from pathlib import Path
import runpy, torch
torch.set_num_threads(1)
from models import distributed
here = runpy.run_path(sys.argv[1])
with distributed.process_group() as rank:
    module = here["network_of"](here["SPEC"])
    heard = []
    settings = here["QUICK"].model_copy(update={"epochs": 10})
    sets = here["TRAIN"], here["VALID"]
    result = here["train"](module, here["SPEC"], *sets, settings, on_epoch=heard.append, checkpoint_dir=Path(sys.argv[2]))
    recall = result.history[-1].macro_recall
    torch.save({"weights": module.state_dict(), "heard": len(heard), "recall": recall}, Path(sys.argv[3]) / f"{rank}.pt")
"""


def test_two_processes_train_one_model(tmp_path):
    """torchrun with gloo on the CPU: both end with the same weights, which learned, and only the first reports and saves."""
    script = tmp_path / "work.py"
    script.write_text(WORK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    arguments = [__file__, str(tmp_path / "checkpoints"), str(tmp_path)]
    environment = dict(os.environ) | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [*command, *arguments], env=environment, cwd=tmp_path, check=False, timeout=240, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert (first["heard"], second["heard"]) == (10, 0)
    assert first["recall"] == second["recall"] > 0.9
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["epoch-00010"]


def test_a_batch_that_cannot_be_dealt_is_refused(monkeypatch):
    from models import distributed

    monkeypatch.setattr(distributed, "world", lambda: (0, 3))
    with pytest.raises(TrainingFailed, match="multiple of 3"):
        distributed.check_batch(16)
    distributed.check_batch(18)
    assert distributed.share(torch.arange(7)).tolist() == [0, 3, 6]


def test_without_torchrun_there_is_one_process():
    from models import distributed

    with distributed.process_group() as rank:
        assert (rank, distributed.world()) == (0, (0, 1))
    assert distributed.from_first("x") == "x"
    module = network_of(SPEC)
    assert distributed.shared(module, torch.device("cpu")) is module
    assert copy.deepcopy(module) is not module
