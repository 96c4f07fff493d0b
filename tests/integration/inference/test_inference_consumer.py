"""Scoring real DICOM files with real bundles, on both database engines."""

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor

import pydicom
import pytest
import torch
from sqlalchemy import select

from models.bundle import load_bundle
from models.predictor import Predictor
from models.preprocessing import load_study
from models.spec import PercentileRange, PreprocessingSpec, SelectionRule
from schemas.drift import ImageSignature
from schemas.tables import Outbox
from schemas.topics import PREDICTION
from schemas.unscored import UnscoredStudy
from schemas.vocabulary import VersionState
from services.inference.app import build, make_consumer
from services.runtime import registry
from services.runtime.consumer import process
from services.runtime.errors import Transient
from services.runtime.signatures import unpacked
from tests.inference_archive import CT, MR, SPEC, archived, files_of, letters, predictions, record, register


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
    assert [key[1] for key in sqlite_consumer.bundles._loaded] == [2]


def test_a_model_that_was_stopped_scores_nothing(sqlite_context, sqlite_consumer):
    register(sqlite_context, "m")
    with sqlite_context.database.transaction() as tx:
        registry.set_serving(tx, "m", serving=False, actor="test")
    assert process(sqlite_context.database, sqlite_consumer, [record(archived(sqlite_context, CT))]) == 0
    assert predictions(sqlite_context) == []


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
