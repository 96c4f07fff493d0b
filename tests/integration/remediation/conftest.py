"""A trained model of striped images, as it was put into service."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.bundle import network_of, save_bundle
from models.data import load_tensors, read_manifest
from models.training import TrainingSettings, train
from services.runtime.service import Context
from tests.remediation_world import CLASSES, SPEC, copied, world, write


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Development data and a bundle that was trained on them."""
    root = tmp_path_factory.mktemp("remediation")
    rows = ["path,label,patient,split"]
    for split, count in (("train", 100), ("valid", 20), ("test", 140)):
        for index in range(count):
            write(root / "development" / split / f"{index}.dcm", index, split, shifted=False)
            rows.append(f"{split}/{index}.dcm,{CLASSES[index % 2]},{split}-{index},{split}")
    (root / "development" / "manifest.csv").write_text("\n".join(rows) + "\n")
    studies = read_manifest(root / "development" / "manifest.csv", CLASSES)
    sets = [
        load_tensors([each for each in studies if each.split == split], CLASSES, SPEC.preprocessing) for split in ("train", "valid")
    ]
    module = network_of(SPEC)
    settings = TrainingSettings(epochs=6, batch_size=16, head_learning_rate=5e-3, body_learning_rate=5e-3, device="cpu")
    train(module, SPEC, *sets, settings)
    save_bundle(root / "bundle", SPEC, module)
    return root


@pytest.fixture(scope="session")
def in_service(template: Path, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder and its SQLite database with version 1 in service, to copy from: its 260 images are read and scored once."""
    root = tmp_path_factory.mktemp("in-service")
    shutil.copy(sqlite_template, root / "reclaim.sqlite")
    world(template, root / "state", f"sqlite:///{root / 'reclaim.sqlite'}").database.close()
    assert not (root / "reclaim.sqlite-wal").exists(), "the file alone is the whole database"
    return root


@pytest.fixture
def stripes(in_service: Path, tmp_path: Path, sqlite_url: str) -> Iterator[Context]:
    """A state folder with version 1 in service."""
    context = copied(in_service, tmp_path / "state", sqlite_url)
    yield context
    context.database.close()


@pytest.fixture
def stripes_anywhere(in_service: Path, template: Path, tmp_path: Path, database_url: str) -> Iterator[Context]:
    """The same, once on each database engine; on PostgreSQL the version is registered anew."""
    state = tmp_path / "state"
    on_file = database_url.startswith("sqlite")
    context = copied(in_service, state, database_url) if on_file else world(template, state, database_url)
    yield context
    context.database.close()
