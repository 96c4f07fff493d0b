"""`reclaim models train` beyond its first options: volumes, every setting of a training, a killed one, what is told meanwhile."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sqlmodel import select

from listeners.splitting import split_manifest
from listeners.training_file import read_training_file
from models.bundle import load_bundle
from models.networks import build_network
from models.spec import PreprocessingSpec
from models.training_settings import TrainingSettings
from schemas.tables import Audit, Outbox
from schemas.topics import RUN
from services.runtime import registry
from services.runtime.errors import InvalidInput
from services.runtime.login import login
from services.runtime.service import Context
from tests.shade_images import write_shades

Reclaim = Callable[..., Any]
ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "training.yaml"
BEGIN = ("--name", "shade", "--task", "shade", "--modality", "MR", "--yes")


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    """Plain images, dark or light on one side."""
    write_shades(tmp_path, {"train": 16, "valid": 6, "test": 8})
    return str(tmp_path / "manifest.csv")


def written(folder: Path, document: dict[str, Any]) -> tuple[str, str]:
    (folder / "training.json").write_text(json.dumps(document))
    return "--config", str(folder / "training.json")


def bundle_of(site: Context, number: int = 1) -> Any:
    with site.database.read() as session:
        return load_bundle(site.settings.models_dir / registry.version(session, "shade", number).bundle)


def events(site: Context) -> list[dict[str, Any]]:
    with site.database.read() as session:
        return [json.loads(body) for body in session.exec(select(Outbox.body).where(Outbox.topic == RUN.name).order_by(Outbox.id))]


def test_every_setting_can_be_given_and_is_on_record(reclaim: Reclaim, manifest: str, site: Context, tmp_path: Path) -> None:
    training = {
        "epochs": 9,
        "batch_size": 8,
        "accumulation": 2,
        "precision": "bfloat16",
        "channels_last": True,
        "balance": "weights",
        "focal_gamma": 1.5,
        "schedule": "plateau",
        "patience": 3,
        "average": 0.9,
        "seed": 3,
        "augmentation": {"rotation_degrees": 2, "flip": False},
    }
    preprocessing = {"size": [32, 24], "intensity": {"kind": "percentile"}, "fit": "stretch"}
    file = written(tmp_path, {"options": {"width": 4}, "preprocessing": preprocessing, "training": training})
    made = reclaim("models", "train", manifest, *BEGIN, *file, "--epochs", "2")
    assert made.code == 0, made.text
    loaded = bundle_of(site)
    assert loaded.spec.preprocessing == PreprocessingSpec.model_validate(preprocessing)
    assert (loaded.spec.options, loaded.spec.seed) == ({"width": 4}, 3)
    assert loaded.training["settings"] == TrainingSettings.model_validate(training | {"epochs": 2}).model_dump(mode="json")


def test_the_example_holds_settings_that_can_be_used(reclaim: Reclaim, manifest: str, site: Context) -> None:
    written = read_training_file(EXAMPLE)
    assert set(written.training) <= set(TrainingSettings.model_fields)
    made = reclaim("models", "train", manifest, *BEGIN, "--config", str(EXAMPLE), "--size", "16", "--epochs", "1")
    assert made.code == 0, made.text
    assert bundle_of(site).spec.preprocessing.size == (16, 16)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"training": {"scheduel": "plateau", "focal_gamma": -1}}, ("scheduel", "focal_gamma")),
        ({"preprocessing": {"spacing": [1, 1, 1]}}, ("spacing is for volumes",)),
        ({"trainig": {}}, ("trainig",)),
        ({"options": {"widht": 4}}, ("does not take these options",)),
        ([], ("none of the parts",)),
    ],
)
def test_settings_that_cannot_be_used_are_told_before_any_image_is_read(
    reclaim: Reclaim, manifest: str, site: Context, tmp_path: Path, document: Any, words: tuple[str, ...]
) -> None:
    said = reclaim("models", "train", manifest, *BEGIN, *written(tmp_path, document))
    assert said.code == 2
    assert all(word in said.text for word in words), said.text


def test_a_network_that_cannot_take_the_size_says_so(reclaim: Reclaim, manifest: str, site: Context) -> None:
    small = reclaim("models", "train", manifest, *BEGIN, "--network", "inception_v3", "--size", "48")
    assert (small.code, "does not take images of 48 x 48 pixels" in small.text) == (2, True), small.text
    flat = reclaim("models", "train", manifest, *BEGIN, "--network", "resnet50", "--depth", "16")
    assert (flat.code, "monai_resnet18" in flat.text) == (2, True), flat.text


def test_a_volume_network_takes_whole_series(reclaim: Reclaim, manifest: str, site: Context) -> None:
    made = reclaim("models", "train", manifest, *BEGIN, "--size", "16", "--depth", "8", "--epochs", "1")
    assert made.code == 0, made.text
    loaded = bundle_of(site)
    assert loaded.spec.preprocessing.size == (8, 16, 16)
    assert any(isinstance(layer, torch.nn.Conv3d) for layer in loaded.module.modules())


def test_start_weights_are_learnt_from_carefully_unless_it_is_said_how(
    reclaim: Reclaim, manifest: str, site: Context, tmp_path: Path
) -> None:
    save_file(build_network("small", 3).state_dict(), tmp_path / "start.safetensors")
    begin = (manifest, *BEGIN, "--size", "16", "--epochs", "1", "--weights", str(tmp_path / "start.safetensors"))
    assert reclaim("models", "train", *begin).code == 0
    assert reclaim("models", "train", *begin, *written(tmp_path, {"training": {"body_learning_rate": 0.001}})).code == 0
    rates = [bundle_of(site, number).training["settings"]["body_learning_rate"] for number in (1, 2)]
    assert rates == [TrainingSettings().body_learning_rate / 10, 0.001]


def test_each_epoch_is_an_event_and_so_is_the_end(reclaim: Reclaim, manifest: str, site: Context) -> None:
    assert reclaim("models", "train", manifest, *BEGIN, "--size", "16", "--epochs", "3").code == 0
    told = events(site)
    assert [(each["state"], each["epoch"], each["epochs"]) for each in told] == [
        *[("running", epoch, 3) for epoch in (1, 2, 3)],
        ("succeeded", None, 3),
    ]
    assert len({each["run_id"] for each in told}) == 1
    assert (told[0]["model"], told[0]["remedy"], set(told[0]["metrics"]) >= {"valid_loss", "macro_recall"}) == (
        "shade",
        "none",
        True,
    )
    assert list((site.settings.state_dir / "runs").iterdir()) == []
    with site.database.read() as session:
        assert set(session.exec(select(Audit.actor))) == {f"user:{login()}"}, "audited under the account's own name"


def test_a_training_that_fails_is_announced(reclaim: Reclaim, manifest: str, site: Context) -> None:
    Path(manifest).with_name("valid-0.dcm").write_bytes(b"no image")
    said = reclaim("models", "train", manifest, *BEGIN, "--size", "16", "--epochs", "1")
    assert (said.code, "study of row" in said.text) == (2, True), "an unreadable image is an error, never a black one"
    assert [each["state"] for each in events(site)] == ["failed"]


def test_a_training_that_succeeds_after_it_failed_is_announced_too(
    reclaim: Reclaim, manifest: str, site: Context, monkeypatch: Any
) -> None:
    from listeners import training

    def refused(*_: Any, **__: Any) -> None:
        raise InvalidInput("the disk was full")

    command = ("models", "train", manifest, *BEGIN, "--size", "16", "--epochs", "1")
    with monkeypatch.context() as patched:
        patched.setattr(training, "register_bundle", refused)
        assert [reclaim(*command).code for _ in range(2)] == [2, 2]
    assert reclaim(*command).code == 0
    assert [each["state"] for each in events(site)] == ["running", "failed", "succeeded"], "each once"


def test_a_killed_training_goes_on_when_asked_for_again(reclaim: Reclaim, manifest: str, site: Context, tmp_path: Path) -> None:
    settings = written(tmp_path, {"options": {"width": 4}, "training": {"epochs": 30, "patience": 30}})
    command = ("models", "train", manifest, *BEGIN, "--size", "64", *settings)
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    runs, ends = site.settings.state_dir / "runs", time.monotonic() + 120
    with subprocess.Popen([sys.executable, "-m", "listeners.cli", *command], env=environment, stdout=subprocess.DEVNULL) as process:
        while not list(runs.glob("*/epoch-00002")) and time.monotonic() < ends:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    [kept] = {path.parent for path in runs.glob("*/epoch-*")}
    before = {each["epoch"] for each in events(site)}
    again = reclaim(*command)
    assert again.code == 0, again.text
    assert "it goes on from there" in again.text
    told = events(site)
    assert sorted(each["epoch"] for each in told if each["epoch"]) == list(range(1, 31)), "each epoch once"
    assert before < {each["epoch"] for each in told}
    assert {each["run_id"] for each in told} == {kept.name}
    assert not kept.exists()


def test_a_checkpoint_that_cannot_be_used_is_put_away(reclaim: Reclaim, manifest: str, site: Context, monkeypatch: Any) -> None:
    from listeners import training

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "save_bundle", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train_and_register(
                site,
                training.TrainingRequest(Path(manifest), "shade", "shade", ("MR",), size=16, epochs=2),
                lambda _: None,
                lambda _: True,
            )
    [folder] = (site.settings.state_dir / "runs").iterdir()
    (folder / "epoch-00002" / "weights.safetensors").write_bytes(b"cut short")
    said = reclaim("models", "train", manifest, *BEGIN, "--size", "16", "--epochs", "2")
    assert said.code == 0, said.text
    assert "is damaged" in said.text
    assert "begins anew" in said.text


def labels_file(folder: Path, rows: list[str], header: str = "path,label,patient") -> str:
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return str(folder / "labels.csv")


def test_a_manifest_is_split_by_patient_and_trains(reclaim: Reclaim, manifest: str, site: Context, tmp_path: Path) -> None:
    rows = [row.rsplit(",", 1)[0] for row in Path(manifest).read_text().splitlines()[1:]]
    labels, split = labels_file(tmp_path, rows), str(tmp_path / "dealt.csv")
    done = reclaim("models", "split", labels, split, "--valid", "0.2", "--test", "0.3")
    assert done.code == 0, done.text
    assert "train: 16 rows (dark 8, light 8)" in done.text, done.text
    assert reclaim("models", "train", split, *BEGIN, "--size", "16", "--epochs", "1").code == 0
    other = str(tmp_path / "again.csv")
    reclaim("models", "split", labels, other, "--valid", "0.2", "--test", "0.3")
    assert Path(other).read_text() == Path(split).read_text(), "the same rows and seed give the same splits"
    assert "is there already" in reclaim("models", "split", labels, split).text
    (tmp_path / "elsewhere").mkdir()
    apart = reclaim("models", "split", labels, str(tmp_path / "elsewhere" / "dealt.csv"))
    assert (apart.code, "beside it" in apart.text) == (2, True), "paths are relative to the manifest"
    assert not list((tmp_path / "elsewhere").iterdir())


@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from("ab"), st.sampled_from(["", "X"])), min_size=20, max_size=80))
@settings(max_examples=25, deadline=None)
def test_no_patient_stands_in_two_splits_however_the_id_is_spelt(rows: list[tuple[int, str, str]]) -> None:
    with TemporaryDirectory() as place:
        folder = Path(place)
        cells = [f"{n}.dcm,{label}, p{patient} ,{issuer}" for n, (patient, label, issuer) in enumerate(rows)]
        cells = [cell.upper() if n % 3 == 0 else cell for n, cell in enumerate(cells)]
        cells = [cell.replace(",A,", ",a,").replace(",B,", ",b,") for cell in cells]
        source = Path(labels_file(folder, cells, "path,label,patient,issuer"))
        try:
            split_manifest(source, folder / "out.csv", (0.5, 0.2, 0.3), 1)
        except InvalidInput:
            return
        with (folder / "out.csv").open() as stream:
            found = [(row["issuer"], row["patient"].strip().upper(), row["split"]) for row in csv.DictReader(stream)]
    splits: dict[tuple[str, str], set[str]] = {}
    for issuer, patient, split in found:
        splits.setdefault((issuer, patient), set()).add(split)
    assert len(found) == len(rows)
    assert all(len(each) == 1 for each in splits.values())


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (["1.dcm,a,p1"], "path,label,patient", "none is left for valid"),
        (["1.dcm,a"], "path,label", "lacks the column patient"),
        (["1.dcm,,p1"], "path,label,patient", "row 2: an empty cell"),
        (["1.dcm,a,p1,x"], "path,label,patient", "row 2"),
        ([], "path,label,patient", "has no rows"),
    ],
)
def test_what_cannot_be_split_is_told(reclaim: Reclaim, tmp_path: Path, rows: list[str], header: str, words: str) -> None:
    said = reclaim("models", "split", labels_file(tmp_path, rows, header), str(tmp_path / "out.csv"))
    assert (said.code, words in said.text) == (2, True), said.text
    assert not (tmp_path / "out.csv").exists()
    assert (
        "nothing is left"
        in reclaim("models", "split", labels_file(tmp_path, rows), "o.csv", "--valid", "0.6", "--test", "0.5").text
    )
