"""The conformance statement lists what the listener accepts and answers, no more and no less."""

import re
from pathlib import Path

import pytest

from listeners.dicom import answers
from listeners.dicom.acceptance import Rules, read_request
from listeners.dicom.answers import Answer
from listeners.dicom.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from listeners.dicom.operations import MPPS, PUSH_MODEL
from listeners.dicom.presentation import storage_classes
from listeners.dicom.storage_classes import CURRENT, RETIRED
from listeners.dicomweb import outcome
from schemas.http_settings import HttpSettings
from schemas.settings import DicomSettings
from tests.dicom_wire import CT, EXPLICIT, VERIFICATION, association_request

TEXT = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (.+) \| (1\.2\.840\.10008\.[0-9.]+) \|$", re.MULTILINE)
RULES = Rules(DicomSettings(), storage_classes(DicomSettings()), (MPPS, PUSH_MODEL))


def section(number: str) -> str:
    """The text of one section, without the next one."""
    return re.split(r"^#+ [0-9]", TEXT.partition(f" {number} ")[2].partition("\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def accepted(*contexts: tuple[str, ...]) -> list[tuple[str, str]]:
    request, _ = read_request(association_request(*contexts)[6:], "127.0.0.1")
    return [(context.abstract_syntax, context.transfer_syntax) for context in RULES.accept(request).contexts.values()]


def test_the_headings_are_those_of_the_template() -> None:
    """PS3.2 Annex A, without its letter."""
    headings = re.findall(r"^#{2,3} ([0-9.]+ .+)$", TEXT, re.MULTILINE)
    assert [each for each in headings if re.match(r"[0-9] ", each)] == [
        "1 Conformance Statement Overview",
        "2 Table of Contents",
        "3 Introduction",
        "4 Networking",
        "5 Media Interchange",
        "6 Support of Character Sets",
        "7 Security",
        "8 Annexes",
    ]
    parts = ["4.1 Implementation Model", "4.2 Application Entity Specifications", "4.3 Network Interfaces", "4.4 Configuration"]
    assert [each for each in headings if each.startswith("4.")] == parts


def test_every_storage_class_is_listed_with_its_name() -> None:
    listed = {uid: name for name, uid in ROW.findall(section("8.8"))}
    assert listed == CURRENT | {uid: f"{name} *" for uid, name in RETIRED.items()}


def test_the_listed_classes_are_negotiated() -> None:
    listed = [uid for _, uid in ROW.findall(section("8.8"))]
    parts = [listed[start : start + 100] for start in range(0, len(listed), 100)]
    assert [pair for part in parts for pair in accepted(*((uid, EXPLICIT) for uid in part))] == [(uid, EXPLICIT) for uid in listed]
    assert accepted(("1.2.840.10008.5.1.4.1.2.2.1", EXPLICIT), ("1.3.12.2.1107.5.9.1", EXPLICIT)) == []


def test_the_listed_transfer_syntaxes_are_negotiated_and_no_others() -> None:
    listed = [uid for _, uid in ROW.findall(section("4.2.1.4.1"))]
    every = {f"1.2.840.10008.1.2.{tail}" for tail in ("1", "2", "5", "1.98", "1.99", "6.1", "6.2", "7.1", "7.2", "7.3", "8.1")}
    every |= {"1.2.840.10008.1.2", "1.2.840.10008.1.20", *(f"1.2.840.10008.1.2.4.{number}" for number in range(50, 260))}
    every |= {f"1.2.840.10008.1.2.4.{number}.1" for number in range(100, 110)} | set(listed)
    assert {syntax for uid in every for _, syntax in accepted((CT, uid))} == set(listed)


@pytest.mark.parametrize("uid", [VERIFICATION, MPPS, PUSH_MODEL])
def test_the_other_services_are_negotiated_as_stated(uid: str) -> None:
    assert uid in section("4.2.1.1")
    syntaxes = re.findall(r"1\.2\.840\.10008\.1\.2(?:\.[0-9]+)*", section("4.2.1.4.1"))
    assert {syntax for syntax in syntaxes if accepted((uid, syntax))} == {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}


def test_every_answer_to_a_c_store_is_listed_with_its_status() -> None:
    row = r"^\| ([0-9A-F]{4})\b.*\| ((?:[A-Z]{3}-\d{3}(?:, )?)+)(?: \(log\))? \|$"
    listed = re.findall(row, section("4.2.1.4.3"), re.MULTILINE)
    told = {(identity, status) for status, ids in listed for identity in ids.split(", ")}
    answered = {(each.message_id, f"{each.status:04X}") for each in vars(answers).values() if isinstance(each, Answer)}
    assert told == answered | {("ASM-313", "0000")}


def test_every_reason_of_stow_is_listed() -> None:
    listed = re.findall(r"^\| ([0-9A-F]{4}) \|.*\| ((?:[A-Z]{3}-\d{3}(?:, )?)+) \|$", section("4.2.3"), re.MULTILINE)
    told = {(identity, status) for status, ids in listed for identity in ids.split(", ")}
    assert told == {(each.message_id, f"{each.status:04X}") for each in vars(outcome).values() if isinstance(each, Answer)}


def test_the_stated_defaults_are_those_of_the_settings() -> None:
    settings, policies = DicomSettings(), section("4.2.1.2") + section("4.2.1.4")
    for setting, value, shown in (
        ("max_associations", 50, "| 50;"),
        ("max_associations_per_peer", 25, "| 25 "),
        ("max_pending_connections", 100, "| 100;"),
        ("ae_title", "RECLAIM", "| `RECLAIM` |"),
        ("port", 11112, "| 11112 |"),
        ("max_pdu", 131_072, "| 131,072 bytes"),
        ("max_object_bytes", 2 << 30, "| 2 GiB;"),
        ("network_timeout_s", 60, "| 60 s;"),
        ("acse_timeout_s", 30, "| 30 s |"),
    ):
        (row,) = [line for line in policies.splitlines() if f"`RECLAIM_DICOM_{setting.upper()}`" in line]
        assert (getattr(settings, setting), shown in row) == (value, True), setting


def test_every_setting_that_it_names_exists() -> None:
    from schemas.settings import Settings

    names = {f"RECLAIM_{name}".upper() for name in Settings.model_fields}
    for group, field in Settings.model_fields.items():
        names |= {f"RECLAIM_{group}_{name}".upper() for name in getattr(field.annotation, "model_fields", {})}
    named = set(re.findall(r"RECLAIM_[A-Z_]+[A-Z]", TEXT))
    assert named - {"RECLAIM_SCU"} <= names
    untold = {f"RECLAIM_DICOM_{name}".upper() for name in DicomSettings.model_fields} - named
    assert untold == {"RECLAIM_DICOM_PEERS", "RECLAIM_DICOM_SILENT_AFTER_S", "RECLAIM_DICOM_HOST"} - named, "say what it does"
    assert "RECLAIM_HTTP_STOW_REQUESTS" in named
    assert HttpSettings().stow_requests == 4


def test_the_implementation_is_named_as_on_the_wire() -> None:
    assert f"| {IMPLEMENTATION_CLASS_UID} |" in section("4.2.1.2")
    assert f"| `{IMPLEMENTATION_VERSION_NAME}` |" in section("4.2.1.2")
