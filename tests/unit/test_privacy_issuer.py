"""A patient is the same pseudonym in the archive, in a version's baseline and among the development patients."""

from io import BytesIO

import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from models.data import LabelledStudy, issuers_of
from models.scoring import ScoredCase
from schemas.settings import Settings
from schemas.tables import Study
from services.assembly.headers import read_facts
from services.assembly.index import ArchiveIndex, StoredFile
from services.assembly.sources import BytesSource
from services.remediation.data import development_patients
from services.runtime.identity import load_pseudonyms
from services.runtime.registration import baseline_rows


def write(path, patient, issuer):
    mr = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
    mr.PatientID, mr.IssuerOfPatientID = patient, issuer
    mr.save_as(path)
    return path


def live(context, path):
    """The pseudonym that the archive's index gives the file's patient."""
    file = pydicom.dcmread(path)
    file.StudyInstanceUID = file.SOPInstanceUID = generate_uid()
    stream = BytesIO()
    file.save_as(stream)
    encoded = stream.getvalue()[144 + file.file_meta.FileMetaInformationGroupLength :]
    syntax = str(file.file_meta.TransferSyntaxUID)
    stored = StoredFile(read_facts(BytesSource(encoded), syntax), syntax, 1, "0" * 64, context.clock.now(), "X")
    ArchiveIndex(context.database, context.pseudonyms).enter(stored)
    with context.database.read() as session:
        return session.get(Study, str(file.StudyInstanceUID)).patient_key


def test_both_sides_name_the_patient_alike(sqlite_context, tmp_path):
    for issuer in ("East", ""):
        path = write(tmp_path / "one.dcm", "p1", issuer)
        for named in ("", issuer):
            study = LabelledStudy("one.dcm", (path,), "a", "p1", issuer=named)
            case = ScoredCase("one.dcm", "p1", "a", "a", {"a": 1.0})
            (row,) = baseline_rows("m", 1, [case], issuers_of([study]), sqlite_context.pseudonyms)
            assert row.patient_key == live(sqlite_context, path)
            assert row.patient_key in development_patients([study], sqlite_context.pseudonyms)


def test_one_person_is_one_patient_whoever_names_an_issuer_and_however_the_id_is_typed(sqlite_context, tmp_path):
    """Modalities name no issuer, a PACS that sends priors does: with two pseudonyms one person could train and judge a repair."""
    known = live(sqlite_context, write(tmp_path / "modality.dcm", "KV 4711a", ""))
    for typed, issuer in (("KV 4711a", "East"), (" kv  4711A ", ""), ("\uff2b\uff36 4711a", "West")):
        assert sqlite_context.pseudonyms.patient(typed, issuer) == known
    assert live(sqlite_context, write(tmp_path / "prior.dcm", "kv 4711A", "East")) == known
    assert sqlite_context.pseudonyms.patient("KV 4711b") != known


def test_where_ids_clash_a_namesake_of_another_issuer_is_another_patient(tmp_path):
    names = load_pseudonyms(Settings(state_dir=tmp_path, pseudonym_key="x" * 32, separate_issuers=True))
    east = write(tmp_path / "East.dcm", "p1", "East")
    developed = development_patients([LabelledStudy("e", (east,), "a", "p1")], names)
    assert names.patient("p1", "East") in developed
    assert names.patient("p1", "West") not in developed


def test_studies_without_a_patient_id_are_different_patients(sqlite_context, tmp_path):
    first, second = (live(sqlite_context, write(tmp_path / "none.dcm", "", "East")) for _ in range(2))
    assert first != second
