"""A late instance on its way through the consumers: the study's next revision is scored anew and replaces the earlier score."""

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from sqlmodel import select

from models.bundle import network_of, save_bundle
from models.spec import ModelSpec, PercentileRange, PreprocessingSpec, SelectionRule
from schemas.settings import JoinSettings
from schemas.tables import Case, ModelVersion, Outbox
from schemas.topics import PREDICTION, STUDY_RECEIVED
from schemas.vocabulary import VersionState
from services.assembly.completion import complete_studies
from services.assembly.index import ArchiveIndex
from services.assembly.reindex import enter_file
from services.assembly.rules import Rules
from services.ground_truth.handlers import Join
from services.inference.app import make_consumer
from services.runtime import registry
from services.runtime.archive import instance_path
from services.runtime.consumer import process
from services.runtime.messages import Record


@pytest.fixture
def consumer(context):
    spec = PreprocessingSpec(size=(32, 32), slices="middle", intensity=PercentileRange())
    model = ModelSpec(name="m", task="finding", classes=("normal", "abnormal"), preprocessing=spec)
    info = save_bundle(context.settings.models_dir / "m" / "1", model, network_of(model))
    with context.database.transaction() as tx:
        registry.register_model(tx, "m", "finding", ["normal", "abnormal"], SelectionRule().model_dump(mode="json"))
        row = ModelVersion(
            model="m", version=1, bundle="m/1", sha256=info.sha256, state=VersionState.CHAMPION, created_at=tx.clock.now()
        )
        registry.add_version(tx, row, [], actor="test")
    made = make_consumer(context)
    yield made
    made.close()


class Feed:
    """The bus between the services: what one put out, another one gets."""

    def __init__(self, context, consumer):
        self.context, self.consumer, self.join, self._read = context, consumer, Join(JoinSettings()), 0

    def arrive(self, study_uid, series_uid, number):
        """One CT slice in the archive and its index, as reception leaves it."""
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{series_uid}.{number}"
        dataset.KVP = 100 + number
        dataset.ImagePositionPatient = [0, 0, 5 * number]
        names, root = self.context.pseudonyms, self.context.settings.archive_dir
        path = root / instance_path(names.study(study_uid), names.series(series_uid), dataset.SOPInstanceUID)
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        enter_file(ArchiveIndex(self.context.database, names), root, path)

    def complete(self):
        with self.context.database.transaction() as tx:
            complete_studies(tx, self.context.pseudonyms, Rules(-1e9))

    def pass_on(self):
        with self.context.database.read() as session:
            rows = session.exec(select(Outbox).where(Outbox.id > self._read).order_by(Outbox.id)).all()
        for row in rows:
            self._read = row.id
            reader = {STUDY_RECEIVED.name: self.consumer, PREDICTION.name: self.join}[row.topic]
            process(self.context.database, reader, [Record(row.topic, 0, row.id, row.key, row.headers, row.body)])
        return len(rows)

    def case(self):
        with self.context.database.read() as session:
            return session.exec(select(Case)).one()


def test_late_instances_replace_the_studys_score(context, consumer, clock):
    feed, study_uid = Feed(context, consumer), generate_uid()
    series_uid = f"{study_uid[:50]}.1"
    feed.arrive(study_uid, series_uid, 1)
    clock.set(clock.now().replace(year=2100))  # the files' times are the machine's
    feed.complete()
    while feed.pass_on():
        pass
    first = feed.case()
    assert first.revision == 1
    for number in (2, 3):
        feed.arrive(study_uid, series_uid, number)
    feed.complete()
    while feed.pass_on():
        pass
    second = feed.case()
    assert second.revision == 2
    assert (first.facets["KVP"], second.facets["KVP"]) == ("101", "102")
    assert second.patient_key == first.patient_key


def test_revisions_out_of_order_leave_the_newest(context, consumer, clock):
    feed, study_uid = Feed(context, consumer), generate_uid()
    series_uid = f"{study_uid[:50]}.1"
    clock.set(clock.now().replace(year=2100))
    for number in (1, 2):
        feed.arrive(study_uid, series_uid, number)
        feed.complete()
    with context.database.read() as session:
        one, two = session.exec(select(Outbox).order_by(Outbox.id)).all()
    for row in (two, one, two):
        process(context.database, consumer, [Record(row.topic, 0, row.id, row.key, row.headers, row.body)])
    feed._read = two.id
    while feed.pass_on():
        pass
    assert feed.case().revision == 2
