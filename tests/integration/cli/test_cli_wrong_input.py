"""Whatever is wrong with the input, the answer is a line that says what to do, never a traceback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file

from listeners.cli.start_checks import refuse_another_key
from schemas.tables import Study
from services.runtime.service import Context

Reclaim = Callable[..., Any]
TRAIN = ("--name", "lung", "--task", "pneumonia", "--modality", "DX")


@pytest.fixture
def files(tmp_path: Path, state: Path) -> Path:
    assert state.exists()
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "manifest.csv").write_text("path,label,patient,split\na.dcm,x,p,train\n")
    (tmp_path / "bad.toml").write_text("this is = = not")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "wrong.toml").write_text('[dicom]\nport = "many"\n')
    (tmp_path / "member.toml").write_text("[dicom]\nprot = 1\n")
    (tmp_path / "typo.toml").write_text("[dicmo]\nport = 1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (("models", "train", "nope.csv", *TRAIN), "does not exist"),
        (("models", "train", "folder", *TRAIN), "is a directory"),
        (("models", "train", "binary.csv", *TRAIN), "cannot be read"),
        (("models", "train", "empty.csv", *TRAIN), "columns path, label, patient, split are missing"),
        (("models", "train", "manifest.csv", *TRAIN), "no such file"),
        (("models", "train", "manifest.csv", "--name", "Lung X", "--task", "p", "--modality", "DX"), "lower-case"),
        (("models", "train", "manifest.csv", *TRAIN, "--network", "resnet5"), "resnet50"),
        (("models", "train", "manifest.csv", *TRAIN, "--description", "("), "does not compile"),
        (("models", "train", "manifest.csv", "--name", "a", "--task", "b", "--modality", "US"), "'MR', 'CT', 'CR', 'DX'"),
        (("models", "register", "nope", "--dataset", "manifest.csv"), "does not exist"),
        (("models", "register", "folder", "--dataset", "manifest.csv"), "cannot be read"),
        (("models", "retire", "lung", "--yes"), "no model 'lung'"),
        (("models", "rollback", "lung"), "no model 'lung'"),
        (("models", "rollback", "lung", "--to", "x"), "not a valid int"),
        (("models", "promote", "lung", "2", "--reason", "r"), "no model 'lung'"),
        (("models", "promote", "lung", "2"), "--reason"),
        (("models", "stop", "lung"), "no model 'lung'"),
        (("models", "lst"), "Did you mean 'list'"),
        (("labels", "import", "nope.csv"), "does not exist"),
        (("labels", "import", "binary.csv"), "header"),
        (("labels", "import", "empty.csv"), "empty"),
        (("evaluations", "list", "--model", "lng"), "no model 'lng'"),
        (("evaluations", "show", "x"), "there is none yet"),
        (("reports", "list", "--model", "lng"), "no model 'lng'"),
        (("reports", "show", "x"), "there is none yet"),
        (("orders", "show", "x"), "there is none yet"),
        (("send", "nope"), "does not exist"),
        (("send", "folder"), "no DICOM files"),
        (("dead-letters", "show", "abc"), "not a valid int"),
        (("serve", "nope"), "known: relay"),
    ],
)
def test_wrong_arguments(reclaim: Reclaim, files: Path, command: tuple[str, ...], part: str) -> None:
    assert files.is_dir()
    said = reclaim(*command)
    assert said.code == 2, said.text
    assert part in " ".join(said.text.split()), said.text


@pytest.mark.parametrize(
    ("name", "value", "code", "part"),
    [
        ("RECLAIM_CONFIG", "bad.toml", 78, "is not TOML"),
        ("RECLAIM_CONFIG", "binary.toml", 78, "is not TOML"),
        ("RECLAIM_CONFIG", "wrong.toml", 78, "dicom.port"),
        ("RECLAIM_CONFIG", "typo.toml", 78, "dicmo"),
        ("RECLAIM_CONFIG", "member.toml", 78, "dicom.prot: there is no such setting; did you mean port"),
        ("RECLAIM_DICOM_PROT", "104", 78, "dicom.prot: there is no such setting; did you mean port"),
        ("RECLAIM_CONFIG", "nope.toml", 2, "not a file"),
        ("RECLAIM_CONFIG", "folder", 2, "not a file"),
        ("RECLAIM_DICOM_PORT", "x", 78, "dicom.port"),
        ("RECLAIM_DICOM_PORT", "99999", 78, "dicom.port"),
        ("RECLAIM_KAFKA_BOOTSTRAP", "kafka:x", 78, "kafka.bootstrap"),
        ("RECLAIM_STATE_DIR", "empty.csv", 2, "RECLAIM_STATE_DIR"),
        ("RECLAIM_STATE_DIR", "/proc/nope", 2, "RECLAIM_STATE_DIR"),
        ("RECLAIM_DATABASE_URL", "nonsense", 2, "database.url"),
        ("RECLAIM_DATABASE_URL", "sqlite:///binary.csv", 70, "the database cannot be used"),
        ("RECLAIM_DATABASE_URL", "postgresql+psycopg://u:sekret@127.0.0.1:1/x", 75, "the database is away"),
        ("RECLAIM_DATABASE_URL", "postgresql+psycopg://u:sekret@host.invalid/x", 75, "the database is away"),
    ],
)
def test_wrong_settings(
    reclaim: Reclaim, files: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, code: int, part: str
) -> None:
    assert files.is_dir()
    monkeypatch.setenv(name, value)
    said = reclaim("models", "list")
    assert (said.code, part in said.text) == (code, True), said.text
    assert "sekret" not in said.text
    if name != "RECLAIM_CONFIG" and code != 78:
        assert reclaim("doctor").code == 1, "the doctor does not fall ill itself"


@pytest.mark.parametrize(
    ("service", "name", "value", "part"),
    [
        ("inference", "RECLAIM_KAFKA_BOOTSTRAP", "", "reclaim up"),
        ("http", "RECLAIM_HTTP_HOST", "0.0.0.0", "RECLAIM_HTTP_TOKEN"),
        ("dicom", "RECLAIM_DICOM_ALLOWED_NETWORKS", '["nowhere"]', "RECLAIM_DICOM_ALLOWED_NETWORKS"),
    ],
)
def test_a_service_that_cannot_work_with_its_settings_says_so_to_who_starts_it(
    reclaim: Reclaim, state: Path, monkeypatch: pytest.MonkeyPatch, service: str, name: str, value: str, part: str
) -> None:
    monkeypatch.setenv(name, value)
    said = reclaim("serve", service)
    assert (said.code, part in " ".join(said.text.split())) == (78, True), said.text


def test_a_folder_without_rights_is_told(reclaim: Reclaim, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(state))

    monkeypatch.setattr(Path, "mkdir", forbidden)
    said = reclaim("models", "list")
    assert (said.code, "Permission denied" in said.text) == (2, True)


@pytest.mark.parametrize("address", ["nonsense", "http://127.0.0.1:1/v1"])
def test_the_doctor_bears_a_wrong_language_model(reclaim: Reclaim, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RECLAIM_LLM_BASE_URL", address)
    said = reclaim("doctor")
    assert "RECLAIM_LLM_BASE_URL" in said.text
    assert "cannot be examined" not in said.text
    assert "urlopen" not in said.text


@pytest.mark.parametrize("command", [("up",), ("serve", "dicom", "assembly")])
def test_nothing_starts_with_another_key_than_that_of_its_studies(
    reclaim: Reclaim, site: Context, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """Patients would get a second role, studies be filed again, and labels find no case."""
    at = site.clock.now()
    times = {"acquired_at": at, "first_instance_at": at, "last_instance_at": at}
    with site.database.transaction() as tx:
        tx.session.add(Study(study_uid="1.2.3", study_key=site.pseudonyms.study("1.2.3"), patient_key="p", **times))
    refuse_another_key(site)
    monkeypatch.setenv("RECLAIM_PSEUDONYM_KEY", "ab" * 32)
    said = reclaim(*command)
    assert said.code == 78
    assert "not the one that the studies were filed with" in said.text


@pytest.mark.parametrize(
    "command",
    [("models", "list"), ("evaluations", "list"), ("reports", "list"), ("orders", "list"), ("dead-letters", "list")],
)
def test_an_empty_list_says_so(reclaim: Reclaim, command: tuple[str, ...]) -> None:
    said = reclaim(*command)
    assert said.code == 0
    assert "┃" not in said.text
    assert len(said.text) > 10


def commands() -> list[tuple[str, ...]]:
    import typer.main

    from listeners.cli.main import app

    return _below(typer.main.get_command(app))


def _below(command: Any) -> list[tuple[str, ...]]:
    if not hasattr(command, "commands"):
        return [()]
    return [(name, *rest) for name, each in command.commands.items() for rest in _below(each)]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_help_teaches_with_an_example(reclaim: Reclaim, command: tuple[str, ...]) -> None:
    assert "reclaim" in reclaim(*command, "--help").text.partition("Example")[2]


def test_damaged_files_are_told_of_without_remarks_of_the_library(reclaim: Reclaim, tmp_path: Path, recwarn) -> None:
    """pydicom warns of each bad value, with a line of its own source."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.COLLISION.1"
    dataset.save_as(tmp_path / "damaged.dcm")
    recwarn.clear()
    said = reclaim("send", str(tmp_path / "damaged.dcm"))
    assert (said.code, "holds no DICOM files" in said.text) == (2, True)
    assert [each for each in recwarn if "pydicom" in each.filename] == []


def test_a_file_that_is_no_plan_is_said_to_be_none(reclaim: Reclaim, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("study,task,label\n")
    said = reclaim("models", "plan", "check", "labels.csv")
    assert said.code == 2
    assert said.text == "error: the change control plan labels.csv is not valid: it has no fields, such as `model`\n"
