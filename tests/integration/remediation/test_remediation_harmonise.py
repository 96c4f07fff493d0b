"""Studies of another presentation, harmonised: from order to promotion, service and the way back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.remediation_world as world
from models.bundle import LoadedModel, load_bundle
from models.predictor import Predictor
from models.preprocessing import Prepared, load_study
from schemas.events import MaintenancePromotion
from schemas.tables import Job, ModelVersion, RegisteredModel
from schemas.topics import PROMOTION
from schemas.vocabulary import CaseRole, JobState, OrderKind, Remedy, Verdict
from services.inference.bundles import BundleCache
from services.inference.repository import scoring_versions
from services.remediation import data
from services.remediation.data import development, split_of
from services.remediation.worker import JobWorker
from services.runtime.service import Context
from tests.remediation_world import events, give, stored, stream


@pytest.fixture
def darker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The changed scanner shows its images as the model knows them, but darker and flatter."""
    usual = world.image

    def image(label: int, seed: int, *, shifted: bool) -> np.ndarray:
        shades = usual(label, seed, shifted=False).astype(float) / 255
        return ((0.3 * shades**2.5 if shifted else shades) * 255).astype(np.uint8)

    monkeypatch.setattr(world, "image", image)
    # To look at an image of 32 pixels takes longer than a network as small as this one: of any larger one it is a tenth.
    monkeypatch.setattr("services.runtime.change_plans.LATENCY_RATIO", 10.0)


def bundle(context: Context, version: int) -> LoadedModel:
    return load_bundle(context.settings.models_dir / stored(context, ModelVersion, ("stripes", version)).bundle)


def prepared(context: Context, folder: Path, *, shifted: bool) -> list:
    studies = []
    for index in range(12):
        world.write(folder / f"{shifted}-{index}.dcm", index, f"{shifted}", shifted=shifted)
        studies.append(load_study([folder / f"{shifted}-{index}.dcm"], bundle(context, 1).spec.preprocessing).tensor)
    return studies


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The first file of each study that a repair reads, in order."""
    seen: list[Path] = []

    def noted(paths: Sequence[Path], *rest: Any) -> Prepared:
        seen.append(Path(paths[0]))
        return load_study(paths, *rest)

    monkeypatch.setattr(data, "load_study", noted)
    return seen


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many studies each call of a predictor scores; the pairs that are timed are no such calls."""
    counts: list[int] = []
    real = Predictor.examine
    monkeypatch.setattr(Predictor, "examine", lambda self, given: counts.append(len(given)) or real(self, given))
    return counts


@pytest.mark.usefixtures("darker")
def test_the_champion_reads_and_scores_the_baseline_once(stripes: Context, reads: list[Path], scored: list[int]) -> None:
    """The rung is told its recalls there, and the gate judges by the same answers."""
    stream(stripes, CaseRole.TUNE, 60)
    stream(stripes, CaseRole.GATE, 80)
    give(stripes, OrderKind.REMEDY, "repair", version=1, remedy=Remedy.HARMONISE)
    assert JobWorker(stripes).run_one()
    job = stored(stripes, Job, "repair")
    assert job.result.get("verdict") == Verdict.PROMOTE, (job.error, job.result)
    dataset = stored(stripes, ModelVersion, ("stripes", 1)).dataset
    baseline = split_of(development(dataset, world.CLASSES), "test")
    assert len(baseline) not in {60, 80}
    assert [reads.count(Path(study.paths[0])) for study in baseline] == [1] * len(baseline)
    assert scored.count(len(baseline)) == 2, "each version once"


@pytest.mark.usefixtures("darker")
def test_another_presentation_is_harmonised_and_old_studies_read_as_ever(stripes: Context, tmp_path: Path) -> None:
    stream(stripes, CaseRole.TUNE, 60)
    stream(stripes, CaseRole.GATE, 80)
    give(stripes, OrderKind.REMEDY, "repair", version=1, remedy=Remedy.HARMONISE)
    assert JobWorker(stripes).run_one()
    job = stored(stripes, Job, "repair")
    assert (job.state, job.result.get("verdict")) == (JobState.SUCCEEDED, Verdict.PROMOTE), (job.error, job.result)
    assert job.result["numbers"]["accuracy:challenger"] > 0.9 > job.result["numbers"]["accuracy:champion"]
    assert job.result["choices"]["harmonisation"]["recent_that_look_new"] > 0.9
    assert stored(stripes, RegisteredModel, "stripes").champion == 2
    first, second = (Predictor(bundle(stripes, version), "cpu") for version in (1, 2))
    old, new = (prepared(stripes, tmp_path, shifted=shifted) for shifted in (False, True))
    assert second.predict(old) == first.predict(old)
    assert second.predict(new) != first.predict(new)
    _check_service(stripes, new, second)
    give(stripes, OrderKind.ROLLBACK, "back", version=2)
    assert stored(stripes, RegisteredModel, "stripes").champion == 1
    assert events(stripes, PROMOTION, MaintenancePromotion)[-1].champion_after == 1


def _check_service(context: Context, new: list, expected: Predictor) -> None:
    """The version in service is loaded as the gate scored it."""
    cache = BundleCache(context.settings.models_dir, lambda loaded: Predictor(loaded, "cpu"), context.clock.monotonic)
    with context.database.read() as session:
        ready, broken = cache.refresh(scoring_versions(session))
    assert not broken
    (serving,) = ready
    assert serving.predictor.predict(new) == expected.predict(new)
