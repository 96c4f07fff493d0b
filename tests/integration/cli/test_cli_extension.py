"""Start weights and new classes at the command line, with real trainings of a small network on DICOM files."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sqlmodel import select

from listeners.dicom.synthesize import StudyFacts, study_instance_uid, write_image
from models.bundle import load_bundle
from models.networks import build_network
from schemas.tables import Audit, Case, Instance, ModelVersion, Study
from schemas.vocabulary import CaseRole, CaseState, StudyState, VersionState
from services.runtime import registry
from services.runtime.archive import instance_path
from services.runtime.service import Context

Reclaim = Callable[..., Any]
CLASSES = ("dark", "light", "low")
AT = datetime(2026, 3, 2, tzinfo=UTC)
TRAIN = ("--name", "shade", "--task", "shade", "--modality", "MR", "--size", "16", "--epochs", "40")


def write(path: Path, name: str, label: str) -> StudyFacts:
    """One image: bright on the left, or not, or bright below."""
    image = np.random.default_rng(list(name.encode())).normal(90, 10, (24, 24))
    image[:, :12] += 100 * (label == "light")
    image[12:] += 100 * (label == "low")
    facts = StudyFacts("MR", name, name, AT + timedelta(minutes=len(name)))
    write_image(path, image.clip(0, 255).astype(np.uint8), facts)
    return facts


def manifest(folder: Path, classes: tuple[str, ...], counts: tuple[int, int, int] = (48, 12, 36)) -> Path:
    """A data set of these classes; its patients are the same whatever the classes."""
    rows = ["path,label,patient,split"]
    for split, count in zip(("train", "valid", "test"), counts, strict=True):
        for number in range(count):
            label, name = classes[number % len(classes)], f"{split}-{number}-{len(classes)}"
            write(folder / f"{name}.dcm", name, label)
            rows.append(f"{name}.dcm,{label},{name},{split}")
    path = folder / f"manifest-{len(classes)}.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def gate_cases(site: Context, counts: dict[str, int]) -> None:
    """Labelled studies of gate patients in the archive, scored by version 1, which knows no class `low`."""
    with site.database.transaction() as tx:
        for label, count in counts.items():
            for number in range(count):
                name, temporary = f"gate-{label}-{number}", site.settings.state_dir / "incoming.dcm"
                uid = study_instance_uid(write(temporary, name, label).seed)
                key, patient = site.pseudonyms.study(uid), site.pseudonyms.patient(name)
                relative = instance_path(key, site.pseudonyms.series(uid), uid)
                (site.settings.archive_dir / relative).parent.mkdir(parents=True, exist_ok=True)
                temporary.rename(site.settings.archive_dir / relative)
                times = {"acquired_at": AT, "first_instance_at": AT, "last_instance_at": AT}
                row = Study(
                    study_uid=uid, study_key=key, patient_key=patient, state=StudyState.COMPLETE, revision=1, instances=1, **times
                )
                tx.session.add(row)
                tx.session.flush()
                said = label if label in CLASSES[:2] else "dark"
                tx.session.add_all([_instance(uid, relative), _case(key, patient, label, said)])


def _instance(uid: str, relative: str) -> Instance:
    uids = {"sop_instance_uid": uid, "study_uid": uid, "series_uid": uid, "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4"}
    rest = {"transfer_syntax_uid": "1.2.840.10008.1.2.1", "size": 1, "sha256": "0" * 64, "received_at": AT}
    return Instance(**uids, modality="MR", path=relative, **rest)


def _case(key: str, patient: str, truth: str, said: str) -> Case:
    scores = {name: 0.9 if name == said else 0.1 for name in CLASSES[:2]}
    names = {"study_key": key, "model": "shade", "version": 1, "task": "shade", "patient_key": patient, "role": CaseRole.GATE}
    times = {"acquired_at": AT, "scored_at": AT, "joined_at": AT}
    return Case(**names, predicted=said, probabilities=scores, truth=truth, state=CaseState.JOINED, **times)


def version(site: Context, number: int) -> ModelVersion:
    with site.database.read() as session:
        return registry.version(session, "shade", number)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def test_a_version_learns_a_class_more_and_serves_through_the_gate(reclaim: Reclaim, data: Path, site: Context) -> None:
    assert reclaim("models", "train", str(manifest(data, CLASSES[:2])), *TRAIN).code == 0
    wider = str(manifest(data, CLASSES))
    said = reclaim("models", "extend", "shade", wider, "--classes", "low")
    assert "knows dark, light, low" in said.text, said.text
    made = version(site, 2)
    assert (made.state, made.parent, made.classes) == (VersionState.CANDIDATE, 1, list(CLASSES)), "it does not serve yet"
    folders = [site.settings.models_dir / version(site, number).bundle for number in (1, 2)]
    old, new = (load_bundle(folder).module for folder in folders)
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(new(images)[:, :2], old(images), rtol=1e-5, atol=1e-6)
    assert "added classes" in reclaim("models", "show", "shade", "2").text

    gate_cases(site, {"dark": 20, "light": 20})
    refused = reclaim("models", "promote", "shade", "2", "--reason", "a third finding")
    assert refused.code == 2
    assert "low: 0, so about" in refused.text
    assert version(site, 2).state == VersionState.CANDIDATE

    gate_cases(site, {"low": 24})
    passed = reclaim("models", "promote", "shade", "2", "--reason", "a third finding")
    assert passed.code == 0, passed.text
    assert "The new class low is read" in passed.text
    with site.database.read() as session:
        assert (registry.model(session, "shade").champion, registry.model(session, "shade").classes) == (2, list(CLASSES))
        assert {row.truth for row in registry.baseline(session, "shade", 2)} == set(CLASSES)
        assert session.exec(select(Audit).where(Audit.action == "gate.judged")).one().detail["numbers"]["added_cases:low"] == 24
    assert reclaim("models", "rollback", "shade").code == 0
    with site.database.read() as session:
        assert registry.model(session, "shade").classes == list(CLASSES[:2])


def test_what_cannot_be_added_is_told_before_anything_is_learnt(reclaim: Reclaim, data: Path, site: Context) -> None:
    two = str(manifest(data, CLASSES[:2], (4, 2, 2)))
    assert "no model 'shade'" in reclaim("models", "extend", "shade", two).text
    with site.database.transaction() as tx:
        registry.register_model(tx, "shade", "shade", list(CLASSES[:2]), {})
    assert "no version of 'shade' serves" in reclaim("models", "extend", "shade", two).text
    assert reclaim("models", "train", two, *TRAIN[:-1], "1", "--yes").code == 0
    three = manifest(data, CLASSES, (6, 3, 2))
    for arguments, part in (
        ((two,), "shows no class that it lacks"),
        ((two, "--classes", "light"), "it knows light already"),
        ((str(three),), "it lacks low in split test"),
        ((str(three), "--classes", "other"), "neither old nor added classes: low"),
    ):
        said = reclaim("models", "extend", "shade", *arguments)
        assert (said.code, part in said.text) == (2, True), said.text
    with site.database.read() as session:
        assert len(registry.versions(session, "shade")) == 1


def test_start_weights_are_taken_checked_and_shown(reclaim: Reclaim, data: Path, tmp_path: Path, site: Context) -> None:
    file, other = tmp_path / "start.safetensors", tmp_path / "other.safetensors"
    start = build_network("small", 7)
    save_file(start.state_dict(), file)
    save_file(build_network("monai_resnet18", 2).state_dict(), other)
    known, two = hashlib.sha256(file.read_bytes()).hexdigest(), str(manifest(data, CLASSES[:2], (4, 2, 2)))
    quick = (*TRAIN[:-1], "1", "--yes")
    for arguments, part in (
        ((str(file), "--sha256", "0" * 64), "their SHA-256 differs"),
        ((str(other),), "does not fit the network 'small'"),
        ((str(tmp_path / "absent.pt"),), "absent.pt do not exist"),
        (("package:no_such_weights",), "not installed"),
        (("hub:Nothing_Weights.V1",), "offers no weights"),
        (("https://example.org/w.pt",), "give their SHA-256"),
        (("http://example.org/w.pt", "--sha256", known), "begin with https"),
        ((str(file), "--devices", "3"), "choose a multiple of 3"),
    ):
        said = reclaim("models", "train", two, *quick, "--weights", *arguments)
        assert (said.code, part in said.text) == (2, True), said.text
    made = reclaim("models", "train", two, *quick, "--weights", str(file), "--sha256", known, "--devices", "2")
    assert made.code == 0, made.text
    shown = reclaim("models", "show", "shade").text
    assert "on 2 devices" in shown
    assert known in shown
    assert "start.safetensors" in shown
    loaded = load_bundle(site.settings.models_dir / version(site, 1).bundle)
    assert loaded.training["start_weights"] == {"source": str(file), "sha256": known, "tensors": len(start.state_dict()) - 2}
    name = next(iter(start.state_dict()))
    torch.testing.assert_close(loaded.module.state_dict()[name], start.state_dict()[name], atol=0.01, rtol=0.1)
