"""A version that a person brings serves only through the gate, on real DICOM files."""

from pathlib import Path

import pytest
from sqlmodel import select

from models.bundle import network_of, save_bundle
from models.data import load_tensors, read_manifest
from models.training import TrainingSettings, train
from schemas.events import MaintenancePromotion
from schemas.tables import Audit, BaselineCase, Case, Job, ModelVersion, RegisteredModel, TrainingPatient
from schemas.topics import PROMOTION
from schemas.vocabulary import CaseRole, Verdict, VersionState
from services.remediation import repository
from services.remediation.admission import admit
from services.runtime import registry
from services.runtime.errors import InvalidInput
from services.runtime.registration import register_bundle
from services.runtime.service import Context
from tests.remediation_world import CLASSES, SPEC, events, stored, stream, write

WORDS = {"actor": "user:owner", "reason": "trained on both scanners"}


@pytest.fixture(scope="session")
def better(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was trained on images of both scanners, with its development data."""
    root, rows = tmp_path_factory.mktemp("better"), ["path,label,patient,split"]
    for split, count in (("train", 160), ("valid", 20), ("test", 40)):
        for index in range(count):
            write(root / split / f"{index}.dcm", index, f"b-{split}", shifted=index % 4 > 1)
            rows.append(f"{split}/{index}.dcm,{CLASSES[index % 2]},b-{split}-{index},{split}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    studies = read_manifest(root / "manifest.csv", CLASSES)
    sets = [
        load_tensors([each for each in studies if each.split == name], CLASSES, SPEC.preprocessing) for name in ("train", "valid")
    ]
    module = network_of(SPEC)
    train(
        module,
        SPEC,
        *sets,
        TrainingSettings(epochs=8, batch_size=16, head_learning_rate=5e-3, body_learning_rate=5e-3, device="cpu"),
    )
    save_bundle(root / "bundle", SPEC, module)
    return root


def test_a_candidate_that_passes_the_gate_serves(stripes: Context, better: Path) -> None:
    stream(stripes, CaseRole.GATE, 60)
    row = register_bundle(stripes, better / "bundle", better / "manifest.csv", actor="user:owner")
    assert (row.version, row.state) == (2, VersionState.CANDIDATE)
    judged = admit(stripes, "stripes", 2, **WORDS)
    assert judged.judgement.verdict == Verdict.PROMOTE, judged.judgement
    assert stored(stripes, RegisteredModel, "stripes").champion == 2
    assert stored(stripes, ModelVersion, ("stripes", 2)).champion_before == 1
    (told,) = events(stripes, PROMOTION, MaintenancePromotion)
    assert (told.champion_before, told.champion_after, told.origin, told.actor) == (1, 2, "owner", "user:owner")
    with stripes.database.read() as session:
        gate = set(session.exec(select(Case.patient_key).where(Case.role == CaseRole.GATE)))
        assert set(session.exec(select(BaselineCase.patient_key).where(BaselineCase.version == 2))) == gate
        audited = session.exec(select(Audit).where(Audit.action == "gate.judged")).one()
    assert (audited.actor, audited.detail["reason"]) == ("user:owner", "trained on both scanners")
    with stripes.database.transaction() as tx:
        assert registry.roll_back(tx, "stripes", actor="user:owner") == (2, 1)


def test_a_candidate_that_is_not_better_is_rejected_and_its_judgement_is_counted(stripes: Context, template: Path) -> None:
    stream(stripes, CaseRole.GATE, 40)
    for number in (2, 3):
        register_bundle(stripes, template / "bundle", template / "development" / "manifest.csv", actor="user:owner")
        judged = admit(stripes, "stripes", number, **WORDS)
        assert judged.judgement.verdict == Verdict.REJECT
        assert judged.judgement.numbers["gate_judgement"] == number - 1, "every judgement on the same patients spends its share"
        assert stored(stripes, ModelVersion, ("stripes", number)).state == VersionState.REJECTED
    assert stored(stripes, RegisteredModel, "stripes").champion == 1
    with stripes.database.read() as session:
        assert len(repository.gates_before(session, "stripes", "another", 1)) == 2
        assert {job.result["verdict"] for job in session.exec(select(Job))} == {Verdict.REJECT}
    with stripes.database.transaction() as tx:
        assert repository.claimable(tx.session, stripes.clock.now(), "worker", 60) is None, "no worker takes a judgement for a job"


def test_what_is_missing_is_said_and_nothing_changes(stripes: Context, template: Path) -> None:
    stream(stripes, CaseRole.GATE, 10)
    register_bundle(stripes, template / "bundle", template / "development" / "manifest.csv", actor="user:owner")
    with pytest.raises(InvalidInput, match="from 30 labelled cases of its own patients on, and has 10: about 80 more"):
        admit(stripes, "stripes", 2, **WORDS)
    assert stored(stripes, ModelVersion, ("stripes", 2)).state == VersionState.CANDIDATE
    assert events(stripes, PROMOTION, MaintenancePromotion) == []


def test_only_a_candidate_of_a_model_in_service_is_judged(stripes: Context) -> None:
    with pytest.raises(InvalidInput, match="only a candidate"):
        admit(stripes, "stripes", 1, **WORDS)
    with stripes.database.transaction() as tx:
        registry.retire(tx, "stripes", 1, actor="user:owner")
    with pytest.raises(InvalidInput, match="no version of 'stripes' serves"):
        admit(stripes, "stripes", 1, **WORDS)


def test_whom_a_model_has_learnt_from_is_on_record(stripes: Context, template: Path) -> None:
    learnt = [each for each in read_manifest(template / "development" / "manifest.csv") if each.split in ("train", "valid")]
    with stripes.database.read() as session:
        known = session.exec(select(TrainingPatient.patient_key).where(TrainingPatient.model == "stripes")).all()
        tested = set(session.exec(select(BaselineCase.patient_key)))
    assert set(known) == {stripes.pseudonyms.patient(each.patient) for each in learnt}
    assert known
    assert not tested & set(known)
