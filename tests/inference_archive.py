"""Studies of real DICOM files in an archive, and models registered with real bundles, for the scoring consumer."""

import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from sqlalchemy import select

from models.bundle import network_of as build_module
from models.bundle import save_bundle
from models.spec import ModelSpec, PercentileRange, PreprocessingSpec, SelectionRule
from schemas.events import Prediction, SeriesReference, StudyReceived
from schemas.tables import DeadLetter, ModelVersion, Outbox
from schemas.topics import PREDICTION, STUDY_RECEIVED
from schemas.unscored import UnscoredStudy
from schemas.vocabulary import VersionState
from services.inference.unscored import catch_up
from services.runtime import registry
from services.runtime.archive import instance_path, series_folder
from services.runtime.messages import Record, headers_of

CT = get_testdata_file("CT_small.dcm")
MR = get_testdata_file("MR_small.dcm")
SPEC = PreprocessingSpec(size=(32, 32), intensity=PercentileRange())


def register(context, name, number=1, *, rule=None, spec=SPEC, seed=0, state=VersionState.CHAMPION, classes=("normal", "abnormal")):
    """A bundle on disk and in the registry."""
    model = ModelSpec(name=name, task="finding", classes=classes, preprocessing=spec, seed=seed)
    info = save_bundle(context.settings.models_dir / name / str(number), model, build_module(model))
    rule = rule or SelectionRule()
    with context.database.transaction() as tx:
        registry.register_model(tx, name, "finding", list(classes), rule.model_dump(mode="json"))
        row = ModelVersion(
            model=name, version=number, bundle=f"{name}/{number}", sha256=info.sha256, state=state, created_at=tx.clock.now()
        )
        registry.add_version(tx, row, [], actor="test")
    return info.folder


def archived(context, *files, revision=1, **changes):
    """Store copies of files as one new study; returns its event. `changes` overwrite attributes."""
    study_uid, series = generate_uid(), {}
    key = context.pseudonyms.study(study_uid)
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
        series_key = context.pseudonyms.series(f"{study_uid}{dataset.Modality}")
        path = context.settings.archive_dir / instance_path(key, series_key, dataset.SOPInstanceUID)
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path)
        series.setdefault((series_key, dataset.Modality), []).append(path)
    references = tuple(
        SeriesReference(series_key=name, modality=modality, path=series_folder(key, name), instances=len(paths))
        for (name, modality), paths in series.items()
    )
    now = context.clock.now()
    return StudyReceived(
        study_key=key,
        patient_key=context.pseudonyms.patient(study_uid),
        revision=revision,
        modality=references[0].modality,
        acquired_at=now,
        received_at=now,
        completed_by="quiet_period",
        series=references,
    )


def record(study, event_id=None):
    identity = event_id or f"study-{study.study_key[:20]}-{study.revision}"
    headers = headers_of(STUDY_RECEIVED, identity, study.received_at, "00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    return Record(STUDY_RECEIVED.name, 0, 0, study.study_key, headers, study.model_dump_json().encode())


def predictions(context):
    with context.database.read() as session:
        query = select(Outbox.body).where(Outbox.topic == PREDICTION.name).order_by(Outbox.id)
        return [Prediction.model_validate_json(body) for body in session.execute(query).scalars()]


def letters(context):
    with context.database.read() as session:
        return session.execute(select(DeadLetter).order_by(DeadLetter.id)).scalars().all()


def files_of(context, study):
    return sorted((context.settings.archive_dir / study.series[0].path).glob("*.dcm"))


def notes(context):
    """Notes on studies without a score."""
    with context.database.read() as session:
        return session.execute(select(UnscoredStudy).order_by(UnscoredStudy.study_key)).scalars().all()


def announced_again(context):
    """Let the ticker look once; the records of what it announced."""
    with context.database.transaction() as tx:
        catch_up(tx)
    with context.database.read() as session:
        rows = session.execute(select(Outbox).where(Outbox.topic == STUDY_RECEIVED.name).order_by(Outbox.id)).scalars()
        return [Record(row.topic, 0, row.id, row.key, row.headers, row.body) for row in rows]
