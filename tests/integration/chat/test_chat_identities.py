"""What a person types about a patient is taken out before it becomes a command; what they ask of the service is left as it is."""

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from listeners.chat.identities import without_identities
from schemas.tables import Study, TrainingPatient
from services.runtime import registry
from services.runtime.database import Database
from services.runtime.identity import Pseudonyms

TODAY = date(2026, 11, 21)
NAMES = Pseudonyms(b"k" * 32)
COMMANDS = Path(__file__).parents[2] / "benchmarks" / "commands_data" / "commands.v2.jsonl"


@pytest.fixture
def archive(sqlite_database: Database) -> Database:
    at = datetime(2026, 3, 2, tzinfo=UTC)
    times = {"acquired_at": at, "first_instance_at": at, "last_instance_at": at}
    keys = {"patient_key": NAMES.patient("KNOWN-ID"), "accession_key": NAMES.accession("A77")}
    with sqlite_database.transaction() as tx:
        tx.session.add(Study(study_uid="1.2.3", study_key="e" * 32, **keys, **times))
        tx.session.add(TrainingPatient(model="brain", patient_key=NAMES.patient("pt12")))
    return sqlite_database


def cleaned(archive: Database, text: str) -> str:
    with archive.read() as session:
        return without_identities(session, NAMES, text, TODAY)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("what about KNOWN-ID?", "what about [patient]?"),
        ("accession A77, please.", "accession [patient], please."),
        ("was pt12 read right?", "was [patient] read right?"),
        ("MRN 00482913 was read wrongly", "MRN [patient] was read wrongly"),
        ("see H2048131X.", "see [patient]."),
        ("Mrs Doe-Miller, why?", "Mrs [patient], why?"),
        ("Frau Anna Müller hat", "Frau [patient] hat"),
        ("patient named John Smith is wrong", "patient named [patient] is wrong"),
        ("DOE^JANE^^ was wrong", "[patient] was wrong"),
        ("born 1961-03-12", "born [patient]"),
        ("geb. 12.03.1961, Glioma", "geb. [patient], Glioma"),
        ("DOB 19610312", "DOB [patient]"),
        ("study 1.2.826.0.1.3680043.8.498.4711", "study [uid]"),
    ],
)
def test_identities_are_taken_out(archive, text, wanted):
    assert cleaned(archive, text) == wanted


def test_a_phantom_named_as_a_model_or_a_class_takes_no_command_its_words(archive):
    """IDs are known in any case, so that a test image sent as patient LUNG would hide the model of that name."""
    with archive.transaction() as tx:
        registry.register_model(tx, "lung", "nodule-kind", ["Benign", "malignant"], {})
        at = datetime(2026, 3, 2, tzinfo=UTC)
        times = {"acquired_at": at, "first_instance_at": at, "last_instance_at": at}
        for number, known in enumerate(["LUNG", "BENIGN", "Nodule-Kind", "kv12"]):
            study = {"study_uid": f"1.9.{number}", "study_key": f"{number}" * 32, "patient_key": NAMES.patient(known)}
            tx.session.add(Study(**study, **times))
    assert cleaned(archive, "retrain lung, benign is wrong in nodule-kind") == "retrain lung, benign is wrong in nodule-kind"
    assert cleaned(archive, "what about KV12?") == "what about [patient]?"


@pytest.mark.parametrize(
    "text",
    [
        "status of brain_mri since 2026-03-12",
        "evaluate lung_ct from 01.10.2026 to 20261101",
        "approve ord-1234567890ab",
        f"why was study {'1234567890abcdef' * 2} wrong",
        "show the last 20000 cases",
        "MR Brain model: retrain",
        "MS Modell neu trainieren",
        "what changed for the patients at CT2?",
    ],
)
def test_what_is_asked_of_the_service_stays(archive, text):
    assert cleaned(archive, text) == text


def test_no_documented_command_is_changed(archive):
    texts = [json.loads(line)["text"] for line in COMMANDS.read_text(encoding="utf-8").splitlines()]
    changed = [(text, found) for text in texts if (found := cleaned(archive, text)) != text]
    assert len(texts) > 400
    assert changed == []


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=300), st.sampled_from(["KNOWN-ID", "A77", "pt12", "7700551"]))
def test_no_words_around_an_identity_hide_it(archive, words, identity):
    once = cleaned(archive, f"{words} {identity} {words}")
    assert f" {identity} " not in once
    assert cleaned(archive, once) == once
