"""No facet carries a person out of the archive, in whatever writing a site puts them into an equipment attribute."""

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from models.facets import FACETS, facets_of
from models.identity_terms import IdentityTerms
from models.pixels import read_frames
from services.assembly.headers import facts_of

TEXTS = ("StationName", "ManufacturerModelName", "SoftwareVersions", "ConvolutionKernel", "Manufacturer", "BodyPartExamined")


def person(**fields):
    header = Dataset()
    for keyword, value in fields.items():
        setattr(header, keyword, value)
    return header


CASES = [
    ({"PatientName": "Miller^Anna"}, ["MILLER", "room miller 2", "MR-ANNA", "annamiller", "M.I.L.L.E.R"]),
    ({"PatientName": "Li^Na"}, ["LI", "MR Li", "CT1-NA", "LINA1", "naLi"]),
    ({"PatientName": "Ng"}, ["NG-CT", "CT/Ng"]),
    ({"PatientName": "Müller^Jürgen"}, ["MULLER", "Mueller1", "MÜLLER", "Mu\u0308ller", "juergen", "Jurgen"]),
    ({"PatientName": "Mueller^Juergen"}, ["MÜLLER", "MULLER CT", "Jürgen"]),
    ({"PatientName": "Łukasz^Błażej"}, ["LUKASZ", "blazej"]),
    ({"PatientName": "Sørensen^Åse"}, ["SORENSEN", "Soerensen", "aase", "ASE-MR"]),
    ({"PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"}, ["山田", "CT太郎", "yamada", "\uff39\uff21\uff2d\uff21\uff24\uff21"]),
    ({"PatientName": "O'Neil-Smith^Zoë"}, ["ONEIL", "oneilsmith", "Smith CT", "ZOE"]),
    ({"PatientName": "X", "OtherPatientNames": ["Born^Eva", "Kim^Jo"]}, ["BORN", "CT-eva", "JO"]),
    ({"PatientBirthName": "Castillo"}, ["castillo"]),
    ({"PatientID": "4711-77"}, ["4711-77", "471177", "ID4711 77", "4711"]),
    ({"PatientID": "AB 00123"}, ["ab00123", "MR 00123", "x-0-0-1-2-3"]),
    ({"PatientID": "P", "OtherPatientIDs": ["KV-998877", "X1"]}, ["998877"]),
    ({"AccessionNumber": "ACC2026-5512"}, ["ACC2026-5512", "55 12 ACC20265512", "acc20265512"]),
    ({"PatientBirthDate": "19580412"}, ["19580412", "1958-04-12", "12.04.1958", "12.4.58", "04/12/1958", "580412", "12APR1958"]),
    ({"PatientBirthDate": "19581012"}, ["12-Okt-58", "Oct 12, 1958", "12101958"]),
    ({"StudyInstanceUID": "1.2.3.4567.8"}, ["1.2.3.4567.8", "V1.2.3.4567.8"]),
]


@pytest.mark.parametrize(("identity", "values"), CASES)
def test_a_text_that_shares_a_term_with_the_identity_is_left_out(identity, values):
    for value in values:
        for attribute in TEXTS:
            facets = facets_of(person(**identity, **{attribute: value}))
            assert attribute not in facets, (attribute, value, facets)


def test_items_of_other_ids_and_requests_count_too():
    other, request = person(PatientID="ZZ-5566"), person(RequestedProcedureID="RP7788", AccessionNumber="A-9911")
    header = person(OtherPatientIDsSequence=Sequence([other]), RequestAttributesSequence=Sequence([request]))
    for value in ("MR 5566", "RP7788", "A9911"):
        header.StationName = value
        assert facets_of(header) == {}


@pytest.mark.parametrize(
    "value", ["Doe^Jane", "Doe=Jane", "jane@site", "1.2.840.113619.2.5", "1.3.12.2.1107.5.2.43", "20260412", "1.2.3.4.5.6.7"]
)
def test_a_name_an_address_a_uid_or_a_long_number_is_no_equipment_whoever_the_patient_is(value):
    for attribute in TEXTS:
        assert facets_of(person(PatientName="Somebody^Else", **{attribute: value})) == {}


def test_equipment_stays_readable():
    header = person(
        PatientName="Miller^Anna^^Mr", PatientID="4711-77", PatientBirthDate="19580412", AccessionNumber="7", StudyID="1"
    )
    given_facets = {
        "Modality": "MR",
        "BodyPartExamined": "BRAIN",
        "Manufacturer": "GE MEDICAL SYSTEMS",
        "ManufacturerModelName": "Optima MR450w",
        "StationName": "MRC40764",
        "SoftwareVersions": "27\\LX\\MR Software release:DV26.0_R03_1831.b",
        "MagneticFieldStrength": "1.5",
        "ScanningSequence": "SE\\IR",
        "RepetitionTime": "2216.66",
        "EchoTime": "9.12",
        "ConvolutionKernel": "B30f",
        "Rows": 512,
        "PhotometricInterpretation": "MONOCHROME2",
    }
    for keyword, value in given_facets.items():
        setattr(header, keyword, value)
    assert facets_of(header) == {**given_facets, "RepetitionTime": "2217", "Rows": "512"}


def test_a_vendor_or_a_defined_term_stays_whatever_the_patient_is_called():
    header = person(PatientName="Ge^Pa", Manufacturer="GE MEDICAL SYSTEMS", ViewPosition="PA", ManufacturerModelName="GE 5")
    assert facets_of(header) == {"Manufacturer": "GE MEDICAL SYSTEMS", "ViewPosition": "PA"}


@pytest.mark.parametrize(
    ("value", "kept"), [("120", "120"), ("19580412", None), ("1200000", None), ("nan", None), ("-1", None), ("MILLER", None)]
)
def test_a_number_is_one_of_its_attributes_range(value, kept):
    header = Dataset()
    header.add_new("KVP", "SH", value)
    assert facets_of(header).get("KVP") == kept


def test_a_number_that_is_the_patients_id_is_left_out():
    assert "RepetitionTime" not in facets_of(person(PatientID="2216", RepetitionTime="2216.66"))


@pytest.mark.parametrize(
    ("age", "band"),
    [
        *[("012M", "0-17"), ("017Y", "0-17"), ("018Y", "18-39"), ("059Y", "40-59"), ("079Y", "60-79"), ("080Y", "80+")],
        *[("104Y", "80+"), ("200D", "0-17"), ("999Y", None), ("45", None), ("Miller", None), ("", None)],
    ],
)
def test_an_age_is_a_wide_band_and_the_old_are_one(age, band):
    header = Dataset()
    header.add_new("PatientAge", "LO", age)
    assert facets_of(header).get("AgeBand") == band
    assert "PatientAge" not in facets_of(header)


@pytest.mark.parametrize(
    ("born", "seen", "band"),
    [
        ("19580412", "20260101", "60-79"),
        ("19260101", "20260101", "80+"),
        ("20300101", "20260101", None),
        ("1958", "20260101", None),
    ],
)
def test_an_age_band_follows_from_two_dates_and_neither_is_kept(born, seen, band):
    found = facets_of(person(PatientBirthDate=born, StudyDate=seen))
    assert found == ({"AgeBand": band} if band else {})


@given(st.text(max_size=12))
def test_a_sex_is_an_enumerated_value(text):
    header = Dataset()
    header.add_new("PatientSex", "LO", text)
    assert facets_of(header).get("PatientSex") in ({None, text.strip().upper()} & {None, "M", "F", "O"})


def test_what_cannot_be_read_cannot_be_ruled_out():
    class Damaged(Dataset):
        def get(self, key, default=None):
            if key == "OtherPatientNames":
                raise ValueError
            return super().get(key, default)

    header = Damaged()
    header.StationName, header.Manufacturer, header.Modality, header.Rows = "CT1", "Acme", "CT", 8
    assert facets_of(header) == {"Modality": "CT", "Rows": "8"}


@given(
    name=st.text(st.characters(codec="utf-8", categories=("Ll", "Lu", "Lo")), min_size=2, max_size=12),
    before=st.sampled_from(["", "CT ", "MR-"]),
    after=st.sampled_from(["", " 2", "/b"]),
)
def test_no_name_of_two_letters_or_more_passes_as_a_word(name, before, after):
    terms = IdentityTerms.of(person(PatientName=name))
    for text in (name, name.upper(), name.lower()):
        assert terms.shared_by(f"{before}{text}{after}")


@given(number=st.text("0123456789AB-/ ", min_size=3, max_size=12).filter(lambda text: sum(map(str.isalnum, text)) >= 3))
def test_no_identifier_passes(number):
    assert IdentityTerms.of(person(PatientID=number)).shared_by(number)


def test_a_file_is_read_with_everything_that_names_its_patient(tmp_path):

    mr = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
    mr.PatientName, mr.PatientBirthDate, mr.AccessionNumber = "Li^Na", "19580412", "ACC-7788"
    other = Dataset()
    other.PatientID = "ZZ5566"
    mr.OtherPatientIDsSequence = [other]
    for value in ("ROOM LI", "MR 12.4.1958", "acc7788", "zz-5566"):
        mr.StationName = value
        mr.save_as(tmp_path / "one.dcm")
        assert "StationName" not in read_frames(tmp_path / "one.dcm").facets
    mr.StationName = "MRC1"
    mr.save_as(tmp_path / "one.dcm")
    assert read_frames(tmp_path / "one.dcm").facets["StationName"] == "MRC1"
    assert set(read_frames(tmp_path / "one.dcm").facets) <= set(FACETS)


@pytest.mark.parametrize(
    ("value", "kept"), [("BRAIN", "BRAIN"), ("HIRN", "HIRN"), ("MILLER", ""), ("anna 2", ""), ("19580412", "")]
)
def test_the_codes_that_the_index_hands_on_name_nobody(value, kept):
    header = person(PatientName="Miller^Anna", PatientBirthDate="19580412", BodyPartExamined=value, Modality=value)
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(header, keyword, "1.2.3")
    facts = facts_of(header)
    assert (facts.body_part, facts.modality) == (kept, kept)


def test_an_identity_too_long_to_take_apart_hides_every_text() -> None:
    dataset = Dataset()
    dataset.PatientName = "^".join(["Meier"] * 1000)
    assert IdentityTerms.of(dataset).shared_by("MR2")
