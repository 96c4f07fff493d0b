"""A repair from order to promotion on real DICOM files."""

from pathlib import Path

import pytest
from sqlmodel import col, select

from models.bundle import load_bundle
from models.remedies import UNLABELLED
from schemas.events import MaintenanceOrder, MaintenancePromotion, MaintenanceRun
from schemas.settings import RemediationSettings
from schemas.tables import Audit, BaselineCase, Case, Job, ModelVersion, Order, RegisteredModel
from schemas.topics import ORDER, PROMOTION, RUN
from schemas.vocabulary import CaseRole, JobState, OrderKind, OrderState, Remedy, Verdict, VersionState
from services.remediation.worker import JobWorker
from services.runtime import registry
from services.runtime.service import Context
from tests.remediation_world import LIMITS, events, give, stored, stream

PLAN = Path(__file__).parents[3] / "docs" / "examples" / "change-plan.yaml"


def test_a_decayed_model_is_repaired_judged_promoted_and_can_be_rolled_back(stripes_anywhere: Context) -> None:
    stripes = stripes_anywhere
    for role, count in ((CaseRole.TUNE, 60), (CaseRole.GATE, 60), (CaseRole.TRIGGER, 5)):
        stream(stripes, role, count)
    give(stripes, OrderKind.REMEDY, "repair", version=1, remedy=Remedy.FULL, settings={"search": True})
    assert JobWorker(stripes).run_one()
    job = stored(stripes, Job, "repair")
    assert (job.state, job.result.get("verdict")) == (JobState.SUCCEEDED, Verdict.PROMOTE), (job.error, job.result)
    assert job.result["numbers"]["accuracy:challenger"] > 0.9 > job.result["numbers"]["accuracy:champion"]
    assert stored(stripes, RegisteredModel, "stripes").champion == 2
    assert stored(stripes, Order, "repair").state == OrderState.DONE
    _check_version(stripes)
    _check_events(stripes)
    _check_patients(stripes, job)
    assert not list((stripes.settings.state_dir / "runs").iterdir())
    give(stripes, OrderKind.ROLLBACK, "back", version=2)
    assert stored(stripes, RegisteredModel, "stripes").champion == 1
    assert events(stripes, PROMOTION, MaintenancePromotion)[-1].champion_after == 1


def _check_version(context: Context) -> None:
    row = stored(context, ModelVersion, ("stripes", 2))
    assert (row.state, row.parent, row.champion_before, row.origin) == (VersionState.CHAMPION, 1, 1, "repair")
    loaded = load_bundle(context.settings.models_dir / row.bundle)
    assert loaded.info.sha256 == row.sha256
    assert loaded.training["run"] == "repair"
    with context.database.read() as session:
        assert len(registry.baseline(session, "stripes", 2)) == 60
        audited = session.exec(select(Audit).where(Audit.action == "gate.judged")).one().detail
    assert {"data_sha256", "code_sha256", "weights_sha256", "seed", "numbers", "verdict"} <= set(audited)


def _check_events(context: Context) -> None:
    runs = events(context, RUN, MaintenanceRun)
    assert [each.epoch for each in runs if each.epoch is not None][:3] == [0, 1, 2]
    assert runs[-1].state == JobState.SUCCEEDED
    assert {each.epochs for each in runs} == {LIMITS.epochs}
    (promotion,) = events(context, PROMOTION, MaintenancePromotion)
    assert (promotion.challenger, promotion.champion_before, promotion.champion_after) == (2, 1, 2)
    assert promotion.reasons


def _check_patients(context: Context, job: Job) -> None:
    with context.database.read() as session:
        baseline = set(session.exec(select(BaselineCase.patient_key).where(BaselineCase.version == 1)))
    groups = [{case["patient_key"] for case in job.settings["plan"][role]} for role in ("tune", "gate")] + [baseline]
    assert [len(group) for group in groups] == [60, 60, 140]
    assert len(set.union(*groups)) == 260


def relabel(context: Context, role: CaseRole) -> None:
    """Take the labels of a role's cases away: images are left."""
    with context.database.transaction() as tx:
        for case in tx.session.exec(select(Case).where(Case.role == role).order_by(col(Case.acquired_at)).offset(40)):
            case.truth = None
            tx.session.add(case)


@pytest.mark.parametrize(
    "remedy",
    [
        Remedy.RETHRESHOLD,
        Remedy.RECALIBRATE,
        Remedy.HARMONISE,
        Remedy.ADAPT_STATISTICS,
        Remedy.PARAMETER_EFFICIENT,
        Remedy.GRADUAL,
    ],
)
def test_every_rung_goes_from_order_to_verdict(stripes: Context, remedy: Remedy) -> None:
    """Which of them cures this scanner is not the question: each is carried out, recorded, judged and saved as it was judged."""
    stream(stripes, CaseRole.TUNE, 70)
    stream(stripes, CaseRole.GATE, 60)
    relabel(stripes, CaseRole.TUNE)
    (stripes.settings.state_dir / "plans").mkdir()
    text = (
        PLAN.read_text()
        .replace("[head_only", "[gradual, head_only")
        .replace("brain-mri", "stripes")
        .replace("most: 1.0e-3", "most: 1.0e-2")
    )
    (stripes.settings.state_dir / "plans" / "stripes.yaml").write_text(text)
    give(stripes, OrderKind.REMEDY, "rung", remedy=remedy, settings={"epochs": 3})
    assert JobWorker(stripes).run_one()
    job = stored(stripes, Job, "rung")
    assert job.state == JobState.SUCCEEDED, job.error
    assert len(job.settings["plan"]["tune"]) == 40
    assert len(job.settings["plan"]["recent"]) == (70 if remedy in UNLABELLED else 0)
    assert job.result["choices"]
    (promotion,) = events(stripes, PROMOTION, MaintenancePromotion)
    assert promotion.change_plan == job.result["change_plan"]
    assert promotion.change_plan.startswith("change control plan 1.0 (")
    assert promotion.reasons[0] == f"Covered by the {promotion.change_plan}."
    assert (remedy == Remedy.RECALIBRATE) == ("brier_p" in job.result["numbers"])
    row = stored(stripes, ModelVersion, ("stripes", 2))
    loaded, first = (
        load_bundle(stripes.settings.models_dir / each)
        for each in (row.bundle, stored(stripes, ModelVersion, ("stripes", 1)).bundle)
    )
    assert loaded.training["choices"] == job.result["choices"]
    names = [name for name in loaded.module.state_dict() if not name.startswith("harmonisation.")]
    assert names == list(first.module.state_dict())
    if remedy in {Remedy.RETHRESHOLD, Remedy.RECALIBRATE}:
        assert loaded.info.sha256 == first.info.sha256, "the weights are the champion's"
        assert job.result["unchanged"] or loaded.spec.calibration != first.spec.calibration


def test_a_repair_that_changes_nothing_spends_no_level_of_the_gate(stripes: Context) -> None:
    for role in (CaseRole.TUNE, CaseRole.GATE):
        stream(stripes, role, 40, shifted=False)
    for name, remedy in (("first", Remedy.RETHRESHOLD), ("second", Remedy.HEAD_ONLY)):
        give(stripes, OrderKind.REMEDY, name, remedy=remedy, settings={"epochs": 1})
        assert JobWorker(stripes).run_one()
    first, second = (stored(stripes, Job, name) for name in ("first", "second"))
    assert first.result["verdict"] == Verdict.REJECT
    assert second.result["numbers"]["gate_judgement"] == (1 if first.result["unchanged"] else 2)


def test_too_few_cases_become_a_label_request(stripes: Context) -> None:
    stream(stripes, CaseRole.TUNE, 35)
    stream(stripes, CaseRole.GATE, 10)
    give(stripes, OrderKind.REMEDY, "repair", remedy=Remedy.HEAD_ONLY)
    assert JobWorker(stripes).run_one()
    job = stored(stripes, Job, "repair")
    assert (job.state, job.result["verdict"]) == (JobState.SUCCEEDED, Verdict.NEED_LABELS)
    request = next(each for each in events(stripes, ORDER, MaintenanceOrder) if each.kind == OrderKind.LABEL_REQUEST)
    assert request.settings == {"cases": 80}
    assert stored(stripes, Order, request.order_id).kind == OrderKind.LABEL_REQUEST
    assert stored(stripes, RegisteredModel, "stripes").champion == 1


def test_a_healthy_model_keeps_serving(stripes: Context) -> None:
    for role in (CaseRole.TUNE, CaseRole.GATE):
        stream(stripes, role, 40, shifted=False)
    give(stripes, OrderKind.REMEDY, "needless", remedy=Remedy.HEAD_ONLY, settings={"epochs": 1})
    assert JobWorker(stripes).run_one()
    job = stored(stripes, Job, "needless")
    assert job.result["verdict"] == Verdict.REJECT, job.result
    assert stored(stripes, RegisteredModel, "stripes").champion == 1
    assert stored(stripes, ModelVersion, ("stripes", 2)).state == VersionState.REJECTED
    assert "did not pass" in stored(stripes, Order, "needless").explanation


def test_a_challenger_that_waits_keeps_no_gate_case_from_the_next_gate(stripes: Context) -> None:
    """A gate whose power is too small to show any gain ends in a label request; what it saw stays there to be judged again."""
    for role in (CaseRole.TUNE, CaseRole.GATE):
        stream(stripes, role, 40)
    strict = RemediationSettings(**(LIMITS.model_dump() | {"gate_alpha": 1e-12}))
    impatient = Context(
        stripes.settings.model_copy(update={"remediation": strict}), stripes.database, stripes.clock, stripes.pseudonyms
    )
    for number, name in enumerate(("first", "second"), start=2):
        give(impatient, OrderKind.REMEDY, name, remedy=Remedy.FULL)
        assert JobWorker(impatient).run_one()
        job = stored(stripes, Job, name)
        assert job.result["verdict"] == Verdict.NEED_LABELS, (job.error, job.result)
        assert (len(job.settings["plan"]["tune"]), len(job.settings["plan"]["gate"])) == (40, 40)
        assert stored(stripes, ModelVersion, ("stripes", number)).state == VersionState.CHALLENGER
        assert job.result["numbers"]["gate_judgement"] == number - 1
        assert job.result["numbers"]["gate_level"] == 1e-12 / 2 ** (number - 1)
        with stripes.database.read() as session:
            assert registry.baseline(session, "stripes", number) == []


def test_labels_that_are_no_class_of_the_model_are_left_out_and_counted(stripes: Context) -> None:
    for role in (CaseRole.TUNE, CaseRole.GATE):
        stream(stripes, role, 40)
    with stripes.database.transaction() as tx:
        for case in tx.session.exec(select(Case).where(Case.role != CaseRole.TRIGGER).order_by(col(Case.study_key)).limit(5)):
            case.truth = "diagonal"
            tx.session.add(case)
    give(stripes, OrderKind.REMEDY, "mixed", remedy=Remedy.HEAD_ONLY, settings={"epochs": 1})
    assert JobWorker(stripes).run_one()
    job = stored(stripes, Job, "mixed")
    assert job.state == JobState.SUCCEEDED, job.error
    assert job.result["labels_of_no_class"] == 5
    assert len(job.settings["plan"]["tune"]) + len(job.settings["plan"]["gate"]) == 75


def test_a_shared_patient_stops_the_run(stripes: Context) -> None:
    for role in (CaseRole.TUNE, CaseRole.GATE):
        stream(stripes, role, 40)
    with stripes.database.transaction() as tx:
        tune, gate = (tx.session.exec(select(Case).where(Case.role == role)).first() for role in (CaseRole.TUNE, CaseRole.GATE))
        gate.patient_key = tune.patient_key
        tx.session.add(gate)
    give(stripes, OrderKind.REMEDY, "tainted", remedy=Remedy.FULL)
    assert JobWorker(stripes).run_one()
    job = stored(stripes, Job, "tainted")
    assert (job.state, job.error) == (JobState.FAILED, "tune and gate share 1 patient(s)")
    assert stored(stripes, RegisteredModel, "stripes").champion == 1
