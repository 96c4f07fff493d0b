"""The manifest is strict and names the place of every mistake; splits never divide a patient."""

from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from models.data import issuers_of, load_tensors, read_manifest, split_by_patient
from models.errors import InvalidDataset
from models.spec import PercentileRange, PreprocessingSpec

SPEC = PreprocessingSpec(size=(16, 16), intensity=PercentileRange())
CLASSES = ("normal", "sick")


@pytest.fixture
def folder(tmp_path):
    """A file, a folder of two slices, and a file that is no image."""
    mr = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
    (tmp_path / "series").mkdir()
    for name in ("one.dcm", "series/a.dcm", "series/b.dcm"):
        mr.save_as(tmp_path / name)
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM")
    return tmp_path


def manifest(folder: Path, *rows: str, header: str = "path,label,patient,split") -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_a_manifest_names_files_and_folders(folder):
    path = manifest(folder, "one.dcm,normal,p1,train", "series,sick,p2,test")
    studies = read_manifest(path, CLASSES)
    assert [(study.key, len(study.paths), study.label, study.patient, study.split) for study in studies] == [
        ("one.dcm", 1, "normal", "p1", "train"),
        ("series", 2, "sick", "p2", "test"),
    ]
    heard: list[int] = []
    tensors = load_tensors(studies, CLASSES, SPEC, workers=2, on_study=heard.append)
    assert heard == [1, 2]
    assert tensors.labels == (0, 1)
    assert [tuple(study.shape) for study in tensors.studies] == [(1, 1, 16, 16)] * 2
    # MR_small is DERIVED and SECONDARY; the folder's files are copies of it, at one place.
    assert tensors.findings == {"one.dcm": ("only_derived_images",), "series": ("only_derived_images", "duplicate_positions")}
    assert tensors.subset([1]).keys == ("series",)


def test_more_columns_and_a_byte_order_mark_do_no_harm(folder):
    path = manifest(folder, "note,p1,one.dcm,train,normal", header="\ufeffcomment,patient,path,split,label")
    assert read_manifest(path)[0].label == "normal"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["one.dcm,normal,p1,train", "series,healthy,p2,test"], "row 3, column label: not one of normal, sick"),
        (["one.dcm,normal,,train"], "row 2, column patient: empty"),
        (["one.dcm,normal"], "row 2, column patient: empty"),
        (["two.dcm,normal,p1,train"], "row 2, column path: no such file"),
        (["../manifest.csv,normal,p1,train"], "row 2, column path: leaves"),
        (["/etc/passwd,normal,p1,train"], "row 2, column path: leaves"),
        (["one.dcm,normal,p1,train", "one.dcm,sick,p2,train"], "row 3, column path: the same as in row 2"),
        (["one.dcm,normal,p1,train", "series,sick,p1,test"], "row 3, column split: the patient of row 2"),
        ([], "has no rows"),
    ],
)
def test_a_mistake_is_named_by_row_and_column(folder, rows, words):
    with pytest.raises(InvalidDataset, match=words):
        read_manifest(manifest(folder, *rows), CLASSES)


def test_all_mistakes_are_told_at_once_and_no_cell_is_quoted(folder):
    rows = ["one.dcm,Miller^Anna,p1,train", "two.dcm,normal,,train", "../x,sick,p3,", "one.dcm,sick,p1,test"]
    with pytest.raises(InvalidDataset) as caught:
        read_manifest(manifest(folder, *rows), CLASSES)
    assert [line.partition(" row ")[2] for line in str(caught.value).splitlines()] == [
        "2, column label: not one of normal, sick",
        "3, column patient: empty",
        "3, column path: no such file, or a folder without files",
        "4, column split: empty",
        "4, column path: leaves the manifest's folder",
        "5, column path: the same as in row 2",
        "5, column split: the patient of row 2 is in another split",
    ]


def test_many_mistakes_are_counted(folder):
    with pytest.raises(InvalidDataset, match="… and 5 more"):
        read_manifest(manifest(folder, *(f"absent{number}.dcm,normal,p{number},train" for number in range(25))), CLASSES)


def test_a_patient_is_a_patient_within_the_issuer_of_the_id(folder):
    header = "path,label,patient,split,issuer"
    studies = read_manifest(manifest(folder, "one.dcm,normal,p1,train,East", "series,sick,p1,test,West", header=header))
    assert issuers_of(studies) == {"one.dcm": "East", "series": "West"}
    with pytest.raises(InvalidDataset, match="column split"):
        read_manifest(manifest(folder, "one.dcm,normal,p1,train,East", "series,sick,p1,test,East", header=header))


def test_the_issuer_is_the_files_where_the_manifest_names_the_files_patient(folder):
    for name, patient, issuer in (("one.dcm", "p1", "East"), ("series/a.dcm", "other", "East")):
        mr = pydicom.dcmread(folder / name)
        mr.PatientID, mr.IssuerOfPatientID = patient, issuer
        mr.save_as(folder / name)
    studies = read_manifest(manifest(folder, "one.dcm,normal,p1,train", "series,sick,p2,test", "broken.dcm,sick,p3,test"))
    assert issuers_of(studies) == {"one.dcm": "East", "series": "", "broken.dcm": ""}


def test_a_missing_column_or_file_is_named(folder):
    with pytest.raises(InvalidDataset, match="column split is missing"):
        read_manifest(manifest(folder, header="path,label,patient"))
    with pytest.raises(InvalidDataset, match="cannot be read"):
        read_manifest(folder / "absent.csv")


def test_a_study_that_cannot_be_read_is_named(folder):
    studies = read_manifest(manifest(folder, "one.dcm,normal,p1,train", "broken.dcm,sick,p2,train"))
    with pytest.raises(InvalidDataset, match="study of row 3: not a readable DICOM file"):
        load_tensors(studies, CLASSES, SPEC)


cases = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=120)


@given(cases=cases, seed=st.integers(0, 5))
def test_no_patient_is_in_two_parts(cases, seed):
    patients, labels = [f"p{patient}" for patient, _ in cases], [label for _, label in cases]
    parts = split_by_patient(patients, labels, (0.6, 0.2, 0.2), seed)
    assert sorted(index for part in parts for index in part) == list(range(len(cases)))
    people = [{patients[index] for index in part} for part in parts]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]
    assert parts == split_by_patient(patients, labels, (0.6, 0.2, 0.2), seed)


def test_a_split_is_stratified_and_seeded():
    labels = [0] * 80 + [1] * 20
    patients = [f"p{index}" for index in range(100)]
    parts = split_by_patient(patients, labels, (0.7, 0.3), seed=1)
    assert [[labels[index] for index in part].count(1) for part in parts] == [14, 6]
    assert parts != split_by_patient(patients, labels, (0.7, 0.3), seed=2)
    with pytest.raises(ValueError, match="sum to one"):
        split_by_patient(patients, labels, (0.5, 0.1), seed=1)
