"""A repair from order to promotion on real DICOM files, and a worker that is killed in the middle of it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlmodel import col, func, select

from listeners.dicom.synthesize import StudyFacts, study_instance_uid, write_image
from models.bundle import load_bundle, network_of, save_bundle
from models.data import load_tensors, read_manifest
from models.spec import ModelSpec, PreprocessingSpec
from models.training import TrainingSettings, train
from schemas.events import MaintenanceOrder, MaintenancePromotion, MaintenanceRun
from schemas.settings import RemediationSettings, Settings
from schemas.tables import Audit, BaselineCase, Case, Instance, Job, ModelVersion, Order, Outbox, RegisteredModel, Study
from schemas.topics import ORDER, PROMOTION, RUN
from schemas.vocabulary import CaseRole, CaseState, JobState, OrderKind, OrderState, Remedy, StudyState, Verdict, VersionState
from services.remediation.handlers import Remediation
from services.remediation.worker import JobWorker
from services.runtime import registry
from services.runtime.archive import instance_path
from services.runtime.clock import SystemClock
from services.runtime.consumer import process
from services.runtime.database import Database
from services.runtime.identity import Pseudonyms
from services.runtime.messages import Record, headers_of
from services.runtime.registration import register_bundle
from services.runtime.service import Context

KEY = b"test key, thirty-two bytes long!"
AT = datetime(2026, 3, 2, tzinfo=UTC)
CLASSES = ("across", "down")
SPEC = ModelSpec(
    name="stripes",
    task="direction",
    classes=CLASSES,
    options={"width": 8},
    preprocessing=PreprocessingSpec(size=(32, 32)),
    modality="MR",
    seed=3,
)
PLAN = Path(__file__).parents[2] / "docs" / "examples" / "change-plan.yaml"
LIMITS = RemediationSettings(
    lease_s=2,
    epochs=6,
    batch_size=16,
    head_learning_rate=5e-3,
    body_learning_rate=3e-3,
    min_tune_cases=30,
    min_gate_cases=30,
    search=False,
)
WORK = """
import sys
from services.remediation.worker import JobWorker
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from services.runtime.identity import Pseudonyms
from services.runtime.service import Context
from schemas.settings import Settings
settings = Settings.model_validate_json(sys.stdin.read())
clock = SystemClock()
JobWorker(Context(settings, Database(settings.database_url, clock), clock, Pseudonyms(sys.argv[1].encode()))).run_one()
"""


def image(label: int, seed: int, *, shifted: bool) -> Any:
    """Fine stripes across or down; the changed scanner shows them at half the contrast under coarse stripes of its own."""
    random = np.random.default_rng([seed, label, shifted])
    wave = np.sin(np.arange(48) * 1.3 + random.uniform(0, 6)) * 0.22
    shades = np.broadcast_to(wave[:, None] if label == 0 else wave[None], (48, 48)).copy()
    if shifted:
        shades = shades / 2 + np.sin(np.arange(48) * 0.35)[None] * 0.3
    return ((0.5 + shades + random.normal(0, 0.05, (48, 48))).clip(0, 1) * 255).astype(np.uint8)


def write(path: Path, index: int, group: str, *, shifted: bool) -> tuple[str, str]:
    """One study of one image; returns its StudyInstanceUID and SOPInstanceUID."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = StudyFacts("MR", f"{group}-{index}", f"{group}-{index}", AT + timedelta(hours=index))
    return study_instance_uid(facts.seed), write_image(path, image(index % 2, hash_of(group) + index, shifted=shifted), facts)


def hash_of(group: str) -> int:
    return sum(ord(letter) * 1000 for letter in group)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Development data, a trained bundle, and an archive of studies of the changed scanner."""
    root = tmp_path_factory.mktemp("remediation")
    rows = ["path,label,patient,split"]
    for split, count in (("train", 100), ("valid", 20), ("test", 140)):
        for index in range(count):
            write(root / "development" / split / f"{index}.dcm", index, split, shifted=False)
            rows.append(f"{split}/{index}.dcm,{CLASSES[index % 2]},{split}-{index},{split}")
    (root / "development" / "manifest.csv").write_text("\n".join(rows) + "\n")
    studies = read_manifest(root / "development" / "manifest.csv", CLASSES)
    sets = [
        load_tensors([each for each in studies if each.split == split], CLASSES, SPEC.preprocessing) for split in ("train", "valid")
    ]
    module = network_of(SPEC)
    settings = TrainingSettings(epochs=6, batch_size=16, head_learning_rate=5e-3, body_learning_rate=5e-3, device="cpu")
    train(module, SPEC, *sets, settings)
    save_bundle(root / "bundle", SPEC, module)
    return root


def stream(context: Context, role: CaseRole, count: int, *, shifted: bool = True) -> None:
    """Studies of one role in the archive, scored by version 1 and labelled."""
    with context.database.transaction() as tx:
        for index in range(count):
            temporary = context.settings.state_dir / "incoming.dcm"
            study_uid, sop_uid = write(temporary, index, role, shifted=shifted)
            key, series = context.pseudonyms.study(study_uid), context.pseudonyms.series(study_uid)
            relative = instance_path(key, series, sop_uid)
            target = context.settings.archive_dir / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(temporary, target)
            _enter(tx, context, role, index, study_uid, sop_uid, relative)


def _enter(tx: Any, context: Context, role: CaseRole, index: int, study_uid: str, sop_uid: str, relative: str) -> None:
    at, patient = AT + timedelta(hours=index), context.pseudonyms.patient(f"{role}-{index}")
    key, wrong = context.pseudonyms.study(study_uid), CLASSES[1 - index % 2]
    times = {"acquired_at": at, "first_instance_at": at, "last_instance_at": at}
    tx.session.add(
        Study(study_uid=study_uid, study_key=key, patient_key=patient, state=StudyState.COMPLETE, revision=1, instances=1, **times)
    )
    tx.session.flush()
    uids = {
        "sop_instance_uid": sop_uid,
        "study_uid": study_uid,
        "series_uid": study_uid,
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4",
    }
    rest = {"transfer_syntax_uid": "1.2.840.10008.1.2.1", "size": 1, "sha256": "0" * 64, "received_at": at}
    tx.session.add(Instance(**uids, modality="MR", path=relative, **rest))
    scores = {CLASSES[index % 2]: 0.3, wrong: 0.7}
    names = {"study_key": key, "model": "stripes", "version": 1, "task": "direction", "patient_key": patient, "role": role}
    answer = {"predicted": wrong, "probabilities": scores, "truth": CLASSES[index % 2]}
    tx.session.add(Case(**names, **answer, state=CaseState.JOINED, acquired_at=at, scored_at=at, joined_at=at))


def world(template: Path, state_dir: Path, url: str) -> Context:
    """A state folder with version 1 in service."""
    settings = Settings(state_dir=state_dir, database={"url": url}, remediation=LIMITS, evaluation={"bootstrap_draws": 300})
    state_dir.mkdir(parents=True, exist_ok=True)
    clock = SystemClock()
    context = Context(settings, Database(url, clock), clock, Pseudonyms(KEY))
    register_bundle(context, template / "bundle", template / "development" / "manifest.csv", actor="test")
    return context


@pytest.fixture
def stripes(template: Path, tmp_path: Path, sqlite_url: str) -> Any:
    context = world(template, tmp_path / "state", sqlite_url)
    yield context
    context.database.close()


@pytest.fixture
def stripes_anywhere(template: Path, tmp_path: Path, database_url: str) -> Any:
    """The same, once on each database engine."""
    context = world(template, tmp_path / "state", database_url)
    yield context
    context.database.close()


def give(context: Context, kind: OrderKind, order_id: str, **changes: Any) -> None:
    order = MaintenanceOrder(
        order_id=order_id, kind=kind, model="stripes", reason="recall fell", actor="agent:orchestrator", ordered_at=AT, **changes
    )
    record = Record(ORDER.name, 0, 0, "stripes", headers_of(ORDER, order_id, AT), order.model_dump_json().encode())
    assert process(context.database, Remediation(context.settings), [record]) == 0


def stored(context: Context, table: Any, key: Any) -> Any:
    with context.database.read() as session:
        return session.get_one(table, key)


def events(context: Context, topic: Any, model: Any) -> list[Any]:
    with context.database.read() as session:
        bodies = session.exec(select(Outbox.body).where(Outbox.topic == topic.name).order_by(col(Outbox.id))).all()
    return [model.model_validate_json(body) for body in bodies]


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
    "remedy", [Remedy.RETHRESHOLD, Remedy.RECALIBRATE, Remedy.ADAPT_STATISTICS, Remedy.PARAMETER_EFFICIENT, Remedy.GRADUAL]
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
    assert len(job.settings["plan"]["recent"]) == (70 if remedy in {Remedy.RECALIBRATE, Remedy.ADAPT_STATISTICS} else 0)
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
    assert list(loaded.module.state_dict()) == list(first.module.state_dict())
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


def test_a_withdrawn_order_ends_its_running_job(stripes: Context) -> None:
    for role in (CaseRole.TUNE, CaseRole.GATE):
        stream(stripes, role, 40)
    give(stripes, OrderKind.REMEDY, "withdrawn", remedy=Remedy.FULL, settings={"epochs": 400})
    child = _start(stripes)
    try:
        _until_epoch(stripes, "withdrawn", 1)
        with stripes.database.transaction() as tx:
            row = tx.session.get_one(Order, "withdrawn")
            row.state, row.explanation = OrderState.REFUSED, "Taken back."
            tx.session.add(row)
        assert child.wait(60) == 0
    finally:
        child.kill()
    job = stored(stripes, Job, "withdrawn")
    assert (job.state, job.error) == (JobState.FAILED, "The order was withdrawn: Taken back.")


def _start(context: Context) -> subprocess.Popen[bytes]:
    dumped = context.settings.model_dump_json().replace('"url":"**********"', f'"url":"{context.settings.database_url}"')
    child = subprocess.Popen([sys.executable, "-c", WORK, KEY.decode()], stdin=subprocess.PIPE, env=dict(os.environ))
    child.stdin.write(dumped.encode())
    child.stdin.close()
    return child


def _until_epoch(context: Context, job_id: str, epoch: int) -> None:
    deadline = time.monotonic() + 90
    while stored(context, Job, job_id).progress.get("epoch", -1) < epoch:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_worker_is_succeeded_by_one_that_resumes(template: Path, tmp_path: Path, sqlite_template: Path) -> None:
    """SIGKILL in the middle of training; the second attempt goes on and ends with the numbers of an undisturbed run."""
    results = []
    for name in ("killed", "undisturbed"):
        url = f"sqlite:///{tmp_path / f'{name}.sqlite'}"
        shutil.copy(sqlite_template, tmp_path / f"{name}.sqlite")
        context = world(template, tmp_path / name, url)
        stream(context, CaseRole.TUNE, 60)
        stream(context, CaseRole.GATE, 60)
        give(context, OrderKind.REMEDY, "repair", remedy=Remedy.FULL, settings={"epochs": 12})
        if name == "killed":
            _kill_at(context, 3)
        assert JobWorker(context).run_one()
        results.append(stored(context, Job, "repair"))
        _finished_once(context, attempts=2 if name == "killed" else 1)
        context.database.close()
    killed, undisturbed = results
    assert killed.settings["plan"] == undisturbed.settings["plan"]
    timeless = [{name: value for name, value in job.result["numbers"].items() if name != "latency_ratio"} for job in results]
    assert timeless[0] == timeless[1]
    assert len(list((tmp_path / "killed" / "models" / "stripes").glob("run-*"))) == 1
    assert killed.result["weights_sha256"] == undisturbed.result["weights_sha256"]


def _kill_at(context: Context, epoch: int) -> None:
    child = _start(context)
    _until_epoch(context, "repair", epoch)
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    assert stored(context, Job, "repair").state == JobState.RUNNING
    assert not JobWorker(context).run_one(), "the lease still holds"
    while not (stored(context, Job, "repair").lease_until <= datetime.now(UTC)):
        time.sleep(0.1)


def _finished_once(context: Context, attempts: int) -> None:
    job = stored(context, Job, "repair")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, attempts), job.error
    with context.database.read() as session:
        assert session.exec(select(func.count()).select_from(ModelVersion)).one() == 2
    epochs = [each.epoch for each in events(context, RUN, MaintenanceRun) if each.epoch is not None]
    assert epochs == sorted(set(epochs)) == list(range(epochs[-1] + 1))
    assert len(events(context, PROMOTION, MaintenancePromotion)) == 1
