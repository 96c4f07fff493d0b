"""A trained model of striped images, as it was put into service."""

from pathlib import Path
from typing import Any

import pytest

from models.bundle import network_of, save_bundle
from models.data import load_tensors, read_manifest
from models.training import TrainingSettings, train
from tests.remediation_world import CLASSES, SPEC, world, write


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


@pytest.fixture
def stripes(template: Path, tmp_path: Path, sqlite_url: str) -> Any:
    """A state folder with version 1 in service."""
    context = world(template, tmp_path / "state", sqlite_url)
    yield context
    context.database.close()


@pytest.fixture
def stripes_anywhere(template: Path, tmp_path: Path, database_url: str) -> Any:
    """The same, once on each database engine."""
    context = world(template, tmp_path / "state", database_url)
    yield context
    context.database.close()
