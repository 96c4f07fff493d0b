"""A trained model of striped images, studies of a changed scanner in its archive, and orders for its repair."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import make_url
from sqlmodel import col, select

from listeners.dicom.synthesize import StudyFacts, study_instance_uid, write_image
from models.spec import ModelSpec, PreprocessingSpec
from schemas.events import MaintenanceOrder
from schemas.settings import RemediationSettings, Settings
from schemas.tables import Case, Instance, Outbox, Study
from schemas.topics import ORDER
from schemas.vocabulary import CaseRole, CaseState, OrderKind, StudyState
from services.remediation.handlers import Remediation
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


def context_of(state_dir: Path, url: str) -> Context:
    """A state folder as the service sees it."""
    settings = Settings(state_dir=state_dir, database={"url": url}, remediation=LIMITS, evaluation={"bootstrap_draws": 300})
    state_dir.mkdir(parents=True, exist_ok=True)
    clock = SystemClock()
    return Context(settings, Database(url, clock), clock, Pseudonyms(KEY))


def world(template: Path, state_dir: Path, url: str) -> Context:
    """A state folder with version 1 in service."""
    context = context_of(state_dir, url)
    register_bundle(context, template / "bundle", template / "development" / "manifest.csv", actor="test")
    return context


def copied(in_service: Path, state_dir: Path, url: str) -> Context:
    """The same from a copy of such a folder and of the SQLite database beside it."""
    shutil.copy(in_service / "reclaim.sqlite", str(make_url(url).database))
    shutil.copytree(in_service / "state", state_dir)
    return context_of(state_dir, url)


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
