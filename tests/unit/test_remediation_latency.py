"""How the gate measures which version is slower."""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from models.bundle import LoadedModel, load_bundle, network_of, save_bundle
from models.data import TensorSet
from models.predictor import Predictor
from models.spec import ModelSpec, PreprocessingSpec
from schemas.settings import Settings
from services.remediation.comparison import Compared, Duel

SPEC = ModelSpec(name="m", task="t", classes=("a", "b"), preprocessing=PreprocessingSpec(size=(32, 32)))


@pytest.fixture
def version(tmp_path) -> LoadedModel:
    save_bundle(tmp_path / "bundle", SPEC, network_of(SPEC))
    return load_bundle(tmp_path / "bundle")


def measured(version: LoadedModel, monkeypatch: pytest.MonkeyPatch, challenger: object) -> float:
    """The ratio of a version to itself, with `challenger` in place of the second side's `predict`."""
    settings = Settings(inference={"device": "cpu"}).inference
    studies = tuple(torch.rand(1, 1, 32, 32) for _ in range(16))
    names = tuple(map(str, range(16)))
    tensors = TensorSet(studies, (0,) * 16, names, names)
    duel, sides, real = Duel(version, version, settings), [], Predictor.predict

    def predict(self: Predictor, given: object) -> object:
        sides.append(self)
        return challenger(real, self, given) if self is not sides[0] else real(self, given)  # type: ignore[operator]

    monkeypatch.setattr(Predictor, "predict", predict)
    return duel.latency_ratio(Compared((), (), (tensors, tensors)))


def test_a_version_that_waits_for_a_busy_machine_is_not_slower(version, monkeypatch):
    def waiting(real, side, given):
        time.sleep(0.05)
        return real(side, given)

    assert measured(version, monkeypatch, waiting) < 2


def test_work_of_other_threads_counts_for_neither(version, monkeypatch):
    """A lease is renewed, or a study scored, in the same process meanwhile."""

    def beside(real, side, given):
        other = threading.Thread(target=lambda: hashlib.pbkdf2_hmac("sha256", b"a", b"b", 200_000))
        other.start()
        found = real(side, given)
        other.join()
        return found

    threads = torch.get_num_threads()
    assert measured(version, monkeypatch, beside) < 2
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == threads, "later threads have as many cores as before"


def test_a_version_that_works_longer_is_slower(version, monkeypatch):
    def working(real, side, given):
        return [real(side, given) for _ in range(6)][-1]

    assert measured(version, monkeypatch, working) > 3
