"""Canary identities planted wherever a site puts them: none leaves the archive on the bus, in a table, a label or a log line."""

import json
import logging
import os
from io import BytesIO

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from sqlmodel import SQLModel, select

from listeners.dicom.reception import Reception, StoreRequest
from listeners.labels.csv_import import import_csv
from models.bundle import network_of, save_bundle
from models.spec import ModelSpec, PercentileRange, PreprocessingSpec
from schemas.events import Label, Prediction
from schemas.tables import ModelVersion, Outbox
from schemas.topics import LABEL, PREDICTION, STUDY_RECEIVED
from schemas.vocabulary import VersionState
from services.assembly import retention
from services.assembly.completion import complete_studies
from services.assembly.files import ArchiveFiles
from services.assembly.index import ArchiveIndex
from services.assembly.rules import Rules
from services.ground_truth.handlers import Join
from services.inference.app import make_consumer
from services.runtime import registry
from services.runtime.consumer import process
from services.runtime.messages import Record

STUDY = "1.2.826.0.1.3680043.8.498.777001"
IDENTITY = {
    "PatientName": "Kanarienvögel^Zoë^^Dr",
    "PatientBirthName": "Wu",
    "PatientID": "CANARY-4711983",
    "OtherPatientIDs": ["KV998877", "CANARY2"],
    "IssuerOfPatientID": "CANARYHOSPITAL",
    "PatientBirthDate": "19580412",
    "AccessionNumber": "ACCANARY55",
    "ReferringPhysicianName": "Canarydoc^A",
    "StudyDescription": "CANARYSTUDY of Zoe",
    "SeriesDescription": "CANARYSERIES",
    "ProtocolName": "CANARYPROTOCOL",
    "InstitutionName": "CANARYHOSPITAL",
    "PatientComments": "CANARYCOMMENT",
}
PLANTED = {
    "StationName": ["KANARIENVOGEL1", "CT ZOE", "MR-Wu", "4711983 CANARY", "12.4.1958", "ACCANARY55", "kv 998877"],
    "ManufacturerModelName": ["Kanarienvoegel 3000", "model 998877", "12APR58"],
    "SoftwareVersions": [STUDY, "v1 zoë", "accanary55"],
    "ConvolutionKernel": ["Zoë", "1958-04-12"],
    "BodyPartExamined": ["ZOE", "KANARIENVOGEL", "19580412"],
    "Manufacturer": ["Zoe Kanarienvögel", "Kanarienvögel^Zoë"],
}
CANARIES = [
    "canar",
    "kanari",
    "zoe",
    "zoë",
    "4711983",
    "998877",
    "19580412",
    "1958-04-12",
    "12.4.1958",
    "12apr58",
    "777001",
    '"wu',
    "-wu",
]


@pytest.fixture
def archive(sqlite_context):
    files = ArchiveFiles(sqlite_context.settings.archive_dir)
    index = ArchiveIndex(sqlite_context.database, sqlite_context.pseudonyms)
    yield Reception(files, index, sqlite_context.clock, 0)
    files.close()


def planted(number: int, attribute: str, value: str) -> Dataset:
    file = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
    file.SpecificCharacterSet = "ISO_IR 192"
    for keyword, content in {**IDENTITY, attribute: value}.items():
        setattr(file, keyword, content)
    # One study each, so that each value meets the index and the model.
    file.StudyInstanceUID, file.SeriesInstanceUID = f"{STUDY}.{number}", f"{STUDY}.{number}.1"
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = f"{STUDY}.{number}.1.1"
    return file


def receive(reception: Reception, file: Dataset) -> None:
    stream = BytesIO()
    file.save_as(stream)
    meta = file.file_meta
    data = stream.getvalue()[144 + pydicom.dcmread(BytesIO(stream.getvalue())).file_meta.FileMetaInformationGroupLength :]
    names = (str(file.SOPClassUID), str(file.SOPClassUID), str(file.SOPInstanceUID), str(meta.TransferSyntaxUID))
    assert reception.receive(StoreRequest(*names, data, "CT1")).status == 0


def register(context) -> None:
    spec = PreprocessingSpec(size=(16, 16), intensity=PercentileRange())
    model = ModelSpec(name="m", task="finding", classes=("a", "b"), preprocessing=spec)
    info = save_bundle(context.settings.models_dir / "m" / "1", model, network_of(model))
    with context.database.transaction() as tx:
        registry.register_model(tx, "m", "finding", ["a", "b"], {})
        at = tx.clock.now()
        row = ModelVersion(model="m", version=1, bundle="m/1", sha256=info.sha256, state=VersionState.CHAMPION, created_at=at)
        registry.add_version(tx, row, [], actor="test")


def records(context, topic) -> list[Record]:
    with context.database.read() as session:
        rows = session.exec(select(Outbox).where(Outbox.topic == topic.name)).all()
    return [Record(row.topic, 0, number, row.key, row.headers, row.body) for number, row in enumerate(rows)]


def everything_outside(context) -> str:
    """All tables but those that are the archive's index."""
    found = []
    with context.database.read() as session:
        for name, table in SQLModel.metadata.tables.items():
            if name not in ("study", "instance"):
                found += [repr(tuple(row)) for row in session.execute(table.select())]
    return "\n".join(found)


def labels_with_names(path, count):
    """A label of each study, then two lines that are faulty and name people; returns the path."""
    rows = [f"{STUDY}.{number},finding,a,csv,\n" for number in range(count)]
    rows += [
        f"{STUDY}.0,{task},{value},{source},\n"
        for task, value, source in [("Zoë K", "Kanari^Zoë", "dr. canary"), ("f", "a^b", "c")]
    ]
    path.write_text("study,task,label,source,labelled_at\n" + "".join(rows), encoding="utf-8")
    return path


def purge(context):
    with context.database.transaction() as tx:
        for path in context.settings.archive_dir.rglob("*.dcm"):
            os.utime(path, (0, 0))  # files have the machine's time, not the test's
        assert retention.take_out(tx, context.settings.archive_dir, context.clock.now(), committed=False).studies


def test_no_canary_leaves_the_archive(sqlite_context, archive, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    context = sqlite_context
    register(context)
    cases = [(attribute, value) for attribute, values in PLANTED.items() for value in values]
    for number, (attribute, value) in enumerate(cases):
        receive(archive, planted(number, attribute, value))
    context.clock.advance(60)
    with context.database.transaction() as tx:
        assert complete_studies(tx, context.pseudonyms, Rules.from_settings(context.settings.dicom)) == len(cases)
    consumer = make_consumer(context)
    assert process(context.database, consumer, records(context, STUDY_RECEIVED)) == 0
    consumer.close()
    summary = import_csv(context, labels_with_names(tmp_path / "labels.csv", len(cases)))
    assert (summary.accepted, summary.faulty) == (len(cases), 2)
    process(context.database, Join(context.settings.join), [*records(context, PREDICTION), *records(context, LABEL)])
    context.clock.advance(40 * 86_400)
    purge(context)
    predictions = [Prediction.model_validate_json(record.body) for record in records(context, PREDICTION)]
    assert len(predictions) == len(cases)
    assert all(prediction.facets["Modality"] == "MR" for prediction in predictions)
    assert [Label.model_validate_json(record.body).value for record in records(context, LABEL)] == ["a"] * len(cases)
    texts = {
        "tables": everything_outside(context),
        "log": caplog.text,
        "answer": summary.text(),
        "bus": json.dumps(
            [record.body.decode() for topic in (STUDY_RECEIVED, PREDICTION, LABEL) for record in records(context, topic)]
        ),
    }
    for place, text in texts.items():
        for canary in CANARIES:
            assert canary not in text.casefold(), (place, canary)
