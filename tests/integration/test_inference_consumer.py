"""Scoring real DICOM files with real bundles, on both database engines."""

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from sqlalchemy import func, select

from models.bundle import load_bundle, save_bundle
from models.bundle import network_of as build_module
from models.predictor import Predictor
from models.preprocessing import load_study
from models.spec import ModelSpec, PercentileRange, PreprocessingSpec, SelectionRule
from schemas.drift import ImageSignature
from schemas.events import Prediction, SeriesReference, StudyReceived
from schemas.tables import Audit, DeadLetter, Inbox, ModelVersion, Outbox, Study
from schemas.topics import PREDICTION, STUDY_RECEIVED
from schemas.unscored import UnscoredStudy
from schemas.vocabulary import VersionState
from services.inference.app import build, make_consumer
from services.inference.bundles import BrokenChampion
from services.inference.repository import Unscored, unscored
from services.inference.unscored import catch_up, waiting_row
from services.runtime import registry
from services.runtime.archive import instance_path, series_folder
from services.runtime.consumer import process
from services.runtime.errors import Transient
from services.runtime.messages import Record, headers_of
from services.runtime.signatures import unpacked

CT = get_testdata_file("CT_small.dcm")
MR = get_testdata_file("MR_small.dcm")
SPEC = PreprocessingSpec(size=(32, 32), intensity=PercentileRange())


@pytest.fixture
def consumer(context):
    made = make_consumer(context)
    yield made
    made.close()


@pytest.fixture
def sqlite_consumer(sqlite_context):
    made = make_consumer(sqlite_context)
    yield made
    made.close()


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


def test_a_prediction_equals_the_models_own_on_the_same_file(context, consumer):
    folder = register(context, "chest-ct")
    study = archived(context, CT)
    assert process(context.database, consumer, [record(study)]) == 0
    [found] = predictions(context)
    prepared = load_study(files_of(context, study), SPEC)
    [expected] = Predictor(load_bundle(folder), "cpu").predict([prepared.tensor])
    assert found.probabilities == pytest.approx(expected, abs=1e-6)
    assert found.predicted == max(expected, key=expected.get)
    assert (found.model, found.version, found.serving, found.task) == ("chest-ct", 1, True, "finding")
    assert found.facets["Manufacturer"] == "GE MEDICAL SYSTEMS"
    assert found.findings == prepared.codes
    assert sum(found.probabilities.values()) == pytest.approx(1)


def test_a_prediction_leaves_numbers_of_its_images_and_nothing_of_them_on_the_bus(context, consumer):
    folder = register(context, "chest-ct")
    study = archived(context, CT)
    assert process(context.database, consumer, [record(study)]) == 0
    assert process(context.database, consumer, [record(study, "again")]) == 0
    prepared = load_study(files_of(context, study), SPEC)
    [expected] = Predictor(load_bundle(folder), "cpu").examine([prepared.tensor])
    with context.database.read() as session:
        [row] = session.execute(select(ImageSignature)).scalars()
        bodies = session.execute(select(Outbox.body).where(Outbox.topic == PREDICTION.name)).scalars().all()
    found = unpacked([(row.study_key, row.quality, row.layout, row.embedding)])
    assert (row.study_key, row.revision, row.model, row.version) == (study.study_key, 1, "chest-ct", 1)
    assert found.quality[0] == pytest.approx(prepared.signature.quality)
    assert found.embedding[0] == pytest.approx(expected.embedding, rel=2e-3, abs=1e-3)
    assert all(b"quality" not in body and b"embedding" not in body for body in bodies)


def test_the_trace_goes_on_into_the_prediction(context, consumer):
    register(context, "chest-ct")
    process(context.database, consumer, [record(archived(context, CT))])
    with context.database.read() as session:
        [headers] = session.execute(select(Outbox.headers).where(Outbox.topic == PREDICTION.name)).scalars()
    assert headers["traceparent"].split("-")[1] == "a" * 32


def test_champion_and_challenger_score_from_one_decoding(context, consumer):
    register(context, "m", 1)
    register(context, "m", 2, seed=5, state=VersionState.CHALLENGER)
    process(context.database, consumer, [record(archived(context, CT))])
    found = {each.version: each for each in predictions(context)}
    assert {version: each.serving for version, each in found.items()} == {1: True, 2: False}
    assert found[1].probabilities != found[2].probabilities


def test_a_model_scores_only_what_it_is_meant_for(context, consumer):
    register(context, "ct-model", rule=SelectionRule(modalities=("CT",)))
    register(context, "mr-model", rule=SelectionRule(modalities=("MR",), description_regex=r"t1\b"))
    ct, mr = archived(context, CT), archived(context, MR, SeriesDescription="SAG T1 FL")
    other = archived(context, MR, SeriesDescription="AX T2")
    assert process(context.database, consumer, [record(ct), record(mr), record(other)]) == 0
    assert {(each.model, each.study_key) for each in predictions(context)} == {
        ("ct-model", ct.study_key),
        ("mr-model", mr.study_key),
    }
    assert letters(context) == []
    with context.database.read() as session:
        [note] = session.execute(select(UnscoredStudy)).scalars()
    assert (note.study_key, note.model, note.modality) == (other.study_key, "", "MR")
    assert note.reason == "no image of the study fits the model: 1 x not what the selection rule asks for"


def test_an_unreadable_image_is_rejected_and_the_others_go_on(context, consumer):
    register(context, "m")
    good, bad, more = (archived(context, file) for file in (CT, MR, CT))
    [file] = files_of(context, bad)
    file.write_bytes(file.read_bytes()[:-2000])
    assert process(context.database, consumer, [record(good), record(bad, "bad"), record(more)]) == 1
    assert {each.study_key for each in predictions(context)} == {good.study_key, more.study_key}
    [letter] = letters(context)
    assert (letter.event_id, letter.error) == ("bad", "UnreadableImage")
    assert "truncated" in letter.reason


def test_files_that_are_gone_are_a_dead_letter(context, consumer):
    register(context, "m")
    study = archived(context, CT)
    shutil.rmtree(context.settings.archive_dir / study.series[0].path)
    assert process(context.database, consumer, [record(study)]) == 1
    assert "holds no files" in letters(context)[0].reason


def test_a_path_out_of_the_archive_is_refused(context, consumer):
    register(context, "m")
    study = archived(context, CT)
    outside = study.series[0].model_copy(update={"path": "../models/m/1"})
    assert process(context.database, consumer, [record(study.model_copy(update={"series": (outside,)}))]) == 1
    assert "leaves the archive" in letters(context)[0].reason


def test_an_archive_that_is_away_is_tried_again(context, consumer):
    register(context, "m")
    study = archived(context, CT)
    shutil.rmtree(context.settings.archive_dir)
    with pytest.raises(Transient):
        process(context.database, consumer, [record(study)])
    assert letters(context) == []


def test_redelivery_and_a_replayed_topic_change_nothing(context, consumer):
    register(context, "m")
    study = archived(context, CT)
    for event_id in (None, None, "the same study announced under another id"):
        process(context.database, consumer, [record(study, event_id)])
    assert len(predictions(context)) == 1


def test_a_new_revision_is_scored_again(context, consumer):
    register(context, "m")
    study = archived(context, CT)
    process(context.database, consumer, [record(study), record(study.model_copy(update={"revision": 2}))])
    assert sorted(each.revision for each in predictions(context)) == [1, 2]


def test_promotion_takes_effect_with_the_next_batch_and_drops_the_old_version(sqlite_context, sqlite_consumer):
    register(sqlite_context, "m", 1)
    register(sqlite_context, "m", 2, seed=5, state=VersionState.CHALLENGER)
    process(sqlite_context.database, sqlite_consumer, [record(archived(sqlite_context, CT))])
    with sqlite_context.database.transaction() as tx:
        registry.promote(tx, "m", 2, actor="test")
    process(sqlite_context.database, sqlite_consumer, [record(archived(sqlite_context, CT))])
    assert [(each.version, each.serving) for each in predictions(sqlite_context)] == [(1, True), (2, False), (2, True)]
    assert [key[1] for key in sqlite_consumer._bundles._loaded] == [2]


def test_a_model_that_was_stopped_scores_nothing(sqlite_context, sqlite_consumer):
    register(sqlite_context, "m")
    with sqlite_context.database.transaction() as tx:
        registry.set_serving(tx, "m", serving=False, actor="test")
    assert process(sqlite_context.database, sqlite_consumer, [record(archived(sqlite_context, CT))]) == 0
    assert predictions(sqlite_context) == []


def tamper(folder: Path) -> None:
    weights = folder / "models" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def test_a_broken_challenger_is_skipped_loudly_and_recorded_once(context, consumer, caplog):
    register(context, "m", 1)
    tamper(register(context, "m", 2, state=VersionState.CHALLENGER))
    with caplog.at_level(logging.CRITICAL):
        for _ in range(2):
            process(context.database, consumer, [record(archived(context, CT))])
    assert [each.version for each in predictions(context)] == [1, 1]
    assert "m:2 cannot score" in caplog.text
    with context.database.read() as session:
        [entry] = session.execute(select(Audit).where(Audit.action == "version.broken")).scalars()
    assert (entry.subject, entry.detail["serving"]) == ("m:2", False)


def test_a_broken_champion_stops_the_consumer_and_nothing_is_lost(context, consumer):
    folder = register(context, "m")
    study = archived(context, CT)
    tamper(folder)
    with pytest.raises(BrokenChampion, match="m:1"):
        process(context.database, consumer, [record(study)])
    with context.database.read() as session:
        assert session.execute(select(func.count()).select_from(Inbox)).scalar_one() == 0
        assert session.execute(select(Audit.subject).where(Audit.action == "version.broken")).scalars().all() == ["m:1"]
    assert predictions(context) == []
    assert letters(context) == []


def test_weights_of_another_registration_are_refused(sqlite_context, sqlite_consumer):
    register(sqlite_context, "m")
    folder = sqlite_context.settings.models_dir / "m" / "1"
    shutil.rmtree(folder)
    spec = ModelSpec(name="m", task="finding", classes=("normal", "abnormal"), preprocessing=SPEC, seed=9)
    save_bundle(folder, spec, build_module(spec))
    with pytest.raises(BrokenChampion, match="not those that were registered"):
        process(sqlite_context.database, sqlite_consumer, [record(archived(sqlite_context, CT))])


def test_images_beyond_one_forward_pass_keep_their_study(sqlite_context):
    batch = sqlite_context.settings.inference.model_copy(update={"batch_size": 3})
    settings = sqlite_context.settings.model_copy(update={"inference": batch})
    [consumer] = build(
        type(sqlite_context)(settings, sqlite_context.database, sqlite_context.clock, sqlite_context.pseudonyms)
    ).consumers
    folder = register(sqlite_context, "m")
    studies = [archived(sqlite_context, file) for file in [CT, MR] * 5]
    process(sqlite_context.database, consumer, [record(study) for study in studies])
    consumer.close()
    found = {each.study_key: each.probabilities for each in predictions(sqlite_context)}
    predictor = Predictor(load_bundle(folder), "cpu")
    for study in studies:
        [expected] = predictor.predict([load_study(files_of(sqlite_context, study), SPEC).tensor])
        assert found[study.study_key] == pytest.approx(expected, abs=1e-5)


def test_a_study_that_one_version_refuses_is_rejected_and_scored_by_the_other(sqlite_context, sqlite_consumer):
    register(sqlite_context, "flat", rule=SelectionRule(modalities=("CT",)))
    volume = PreprocessingSpec(size=(8, 16, 16), intensity=PercentileRange(), slices="evenly")
    register(sqlite_context, "volume", spec=volume, rule=SelectionRule(modalities=("CT",)))
    small = pydicom.dcmread(CT)
    small.Rows = small.Columns = 64
    small.PixelData = small.PixelData[: 64 * 64 * 2]
    small.ImagePositionPatient[2] += 5
    path = sqlite_context.settings.state_dir / "small.dcm"
    small.save_as(path)
    study = archived(sqlite_context, CT, path)
    assert process(sqlite_context.database, sqlite_consumer, [record(study)]) == 1
    assert [each.model for each in predictions(sqlite_context)] == ["flat"]
    assert letters(sqlite_context)[0].error == "UnsuitableStudy"


def test_no_identity_leaves_the_archive(sqlite_context, sqlite_consumer, caplog):
    register(sqlite_context, "m")
    study = archived(sqlite_context, CT, PatientName="Findme^Anna", PatientID="ID-4711", StationName="FINDME")
    broken = archived(sqlite_context, CT, PatientName="Findme^Anna", RescaleSlope="0")
    [file] = files_of(sqlite_context, broken)
    file.write_bytes(file.read_bytes()[:-2000])
    with caplog.at_level(logging.DEBUG):
        process(sqlite_context.database, sqlite_consumer, [record(study), record(broken)])
    with sqlite_context.database.read() as session:
        published = b"".join(session.execute(select(Outbox.body)).scalars()).decode()
    text = published + caplog.text + letters(sqlite_context)[0].reason
    assert len(predictions(sqlite_context)) == 1
    assert not [word for word in ("findme", "4711", "anna") if word in text.casefold()]


def test_decoding_takes_one_core_a_thread_and_other_threads_keep_theirs(sqlite_context):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    consumer = make_consumer(sqlite_context)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == 3
    assert consumer._scorer._device.submit(torch.get_num_threads).result() == 3
    assert consumer._scorer._decoders.submit(torch.get_num_threads).result() == 1
    consumer.close()
    torch.set_num_threads(before)


def serving(context, name, *, on):
    with context.database.transaction() as tx:
        registry.set_serving(tx, name, serving=on, actor="test")


def notes(context):
    with context.database.read() as session:
        return session.execute(select(UnscoredStudy).order_by(UnscoredStudy.study_key)).scalars().all()


def announced_again(context):
    """Let the ticker look once; the records of what it announced."""
    with context.database.transaction() as tx:
        catch_up(tx, 30)
    with context.database.read() as session:
        rows = session.execute(select(Outbox).where(Outbox.topic == STUDY_RECEIVED.name).order_by(Outbox.id)).scalars()
        return [Record(row.topic, 0, row.id, row.key, row.headers, row.body) for row in rows]


def test_studies_that_came_while_a_model_was_stopped_are_scored_when_it_is_resumed(context, consumer):
    register(context, "m", rule=SelectionRule(modalities=("CT",)))
    register(context, "other")
    serving(context, "m", on=False)
    first, late, mr = archived(context, CT), archived(context, CT), archived(context, MR)
    later = late.model_copy(update={"revision": 2})
    for study in (first, late, later, mr):
        process(context.database, consumer, [record(study)])
    assert {each.model for each in predictions(context)} == {"other"}
    assert announced_again(context) == []
    assert [(note.model, note.reason) for note in notes(context)] == [("m", "the model was stopped")] * 3
    serving(context, "m", on=True)
    again = announced_again(context)
    assert notes(context) == []
    before = len(predictions(context))
    assert process(context.database, consumer, again) == 0
    found = predictions(context)[before:]
    # The other model has scored them already and is not asked again; of two revisions the last one counts.
    assert {(each.model, each.study_key, each.revision) for each in found} == {
        ("m", first.study_key, 1),
        ("m", late.study_key, 2),
    }
    assert announced_again(context) == again
    process(context.database, consumer, again)
    assert len(predictions(context)) == before + 2


def test_a_model_stopped_again_before_it_has_caught_up_loses_nothing(sqlite_context, sqlite_consumer):
    register(sqlite_context, "m")
    study = archived(sqlite_context, CT)
    serving(sqlite_context, "m", on=False)
    process(sqlite_context.database, sqlite_consumer, [record(study)])
    serving(sqlite_context, "m", on=True)
    again = announced_again(sqlite_context)
    serving(sqlite_context, "m", on=False)
    sqlite_context.clock.advance(60)
    process(sqlite_context.database, sqlite_consumer, again)
    assert predictions(sqlite_context) == []
    serving(sqlite_context, "m", on=True)
    process(sqlite_context.database, sqlite_consumer, announced_again(sqlite_context))
    assert [each.study_key for each in predictions(sqlite_context)] == [study.study_key]


def test_a_study_waits_no_longer_than_asked(sqlite_context, sqlite_consumer):
    register(sqlite_context, "m")
    serving(sqlite_context, "m", on=False)
    process(sqlite_context.database, sqlite_consumer, [record(archived(sqlite_context, CT))])
    sqlite_context.clock.advance(31 * 86_400)
    serving(sqlite_context, "m", on=True)
    assert announced_again(sqlite_context) == []
    assert notes(sqlite_context) == []


def test_a_long_stop_is_caught_up_in_parts_oldest_first(sqlite_context, monkeypatch):
    monkeypatch.setattr("services.inference.unscored.AT_ONCE", 2)
    register(sqlite_context, "m")
    with sqlite_context.database.transaction() as tx:
        for _ in range(5):
            study = archived(sqlite_context, CT)
            tx.session.add(waiting_row(study, "m", sqlite_context.clock.now()))
            sqlite_context.clock.advance(1)
    assert [len(announced_again(sqlite_context)) for _ in range(3)] == [2, 4, 5]


def test_a_study_that_no_model_takes_is_noted_logged_and_counted(context, consumer, caplog):
    register(context, "mr-model", rule=SelectionRule(modalities=("MR",)))
    register(context, "knee", rule=SelectionRule(modalities=("CT",), body_parts=("KNEE",)))
    scout = archived(context, CT, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    chest = archived(context, CT, BodyPartExamined="CHEST")
    dx = archived(context, CT, Modality="DX")
    with caplog.at_level(logging.WARNING):
        process(context.database, consumer, [record(each) for each in (scout, chest, dx, archived(context, MR))])
    assert {note.study_key: note.reason for note in notes(context)} == {
        scout.study_key: "no image of the study fits the model: 1 x localiser",
        chest.study_key: "no image of the study fits the model: 1 x not what the selection rule asks for",
        dx.study_key: "no serving model takes its modality",
    }
    assert f"no model takes study {dx.study_key} (modality DX)" in caplog.text
    now = context.clock.now()
    with context.database.read() as session:
        assert unscored(session, now) == [Unscored("", "CT", "", 2), Unscored("", "DX", "", 1)]
        assert unscored(session, now + timedelta(seconds=1)) == []
    process(context.database, consumer, [record(dx, "announced under another id")])
    assert len(notes(context)) == 3


def test_findings_travel_with_their_details(sqlite_context, sqlite_consumer):
    register(sqlite_context, "m", spec=PreprocessingSpec(size=(32, 32), intensity=PercentileRange(), slices="evenly", max_images=4))
    files = []
    for number, place in enumerate((0, 5, 10, 20, 25, 30)):
        one = pydicom.dcmread(CT)
        one.InstanceNumber, one.ImagePositionPatient = number, [0, 0, place]
        one.RescaleSlope = "0"
        files.append(sqlite_context.settings.state_dir / f"{number}.dcm")
        one.save_as(files[-1])
    process(sqlite_context.database, sqlite_consumer, [record(archived(sqlite_context, *files))])
    [found] = predictions(sqlite_context)
    assert found.findings == ("slice_gap", "rescale_absurd")
    assert found.finding_details == {
        "slice_gap": "1 missing at 1 places; usual distance 5.00 mm",
        "rescale_absurd": "RescaleSlope is 0",
    }


def test_a_study_whose_images_retention_deleted_waits_no_longer(context, caplog):
    register(context, "m")
    study = archived(context, CT)
    now = context.clock.now()
    times = {"acquired_at": now, "first_instance_at": now, "last_instance_at": now, "purged_at": now}
    with context.database.transaction() as tx:
        tx.session.add(waiting_row(study, "m", now))
        tx.session.add(Study(study_uid="1.2", study_key=study.study_key, patient_key="p" * 32, **times))
    assert announced_again(context) == []
    assert notes(context) == []
    assert "1 studies that waited" in caplog.text
