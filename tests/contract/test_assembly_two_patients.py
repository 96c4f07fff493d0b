"""One study with objects of two patients: the first decides, and somebody is told, once."""

from sqlmodel import select

from schemas.tables import Audit, Study
from services.assembly.headers import InstanceFacts
from services.assembly.index import ArchiveIndex, StoredFile
from services.runtime.identity import Pseudonyms

NAMES = Pseudonyms(b"k" * 32)
CT = "1.2.840.10008.5.1.4.1.1.2"


def file(clock, number, patient, study="1.2.3"):
    facts = InstanceFacts(CT, f"{study}.9.{number}", study, f"{study}.9", "CT", "", patient, "", "", None)
    return StoredFile(facts, "1.2.840.10008.1.2.1", 10, "", clock.now(), "CT1")


def told(database):
    with database.read() as session:
        return session.exec(select(Audit.subject).where(Audit.action == "study.patients_differ")).all()


def test_a_later_object_of_another_patient_is_told_once(database, clock, caplog):
    index = ArchiveIndex(database, NAMES)
    for number, patient in enumerate(["KANARIE 1", "kanarie  1 ", "KANARIE 2", "KANARIE 2", "KANARIE 3"]):
        index.enter(file(clock, number, patient))
        assert len(told(database)) == (number > 1)
    with database.read() as session:
        assert session.get(Study, "1.2.3").patient_key == NAMES.patient("kanarie 1")
    assert caplog.text.count("ASM-316") == 1
    assert "KANARIE" not in caplog.text
    assert NAMES.study("1.2.3") in caplog.text


def test_two_patients_that_come_together_are_told(database, clock):
    index = ArchiveIndex(database, NAMES)
    index.enter_all([file(clock, 1, "a"), file(clock, 2, "b"), file(clock, 3, "c", study="1.2.4")])
    assert told(database) == [NAMES.study("1.2.3")]


def test_an_object_that_comes_again_or_names_nobody_tells_nothing(database, clock):
    index = ArchiveIndex(database, NAMES)
    for number, patient in ((1, "a"), (1, "a"), (2, "a"), (3, "")):
        index.enter(file(clock, number, patient))
    assert told(database) == []
