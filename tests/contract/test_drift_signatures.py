"""A prediction and what it leaves of its images are one transaction; a registration keeps the reference and its probes."""

import numpy as np
from sqlmodel import select

from listeners.dicom.synthesize import StudyFacts, write_image
from models.bundle import network_of, save_bundle
from models.scoring import ScoredCase
from models.signature import LAYOUT, QUALITY
from models.spec import ModelSpec, PreprocessingSpec
from schemas.drift import ReferenceSignature
from services.runtime import signatures
from services.runtime.registration import baseline_key, register_bundle

CLASSES = ("low", "high")


def register(context, folder, count=12):
    """A tiny model with a test set of `count` images on disk."""
    generator = np.random.default_rng(0)
    rows = ["path,label,patient,split"]
    for number in range(count):
        facts = StudyFacts(modality="MR", patient_id=f"p{number}", seed=f"s{number}", acquired_at=context.clock.now())
        file = folder / "test" / f"{number}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_image(file, generator.integers(0, 255, (32, 32)).astype(np.uint8), facts)
        rows.append(f"test/{number}.dcm,{CLASSES[number % 2]},p{number},test")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n")
    spec = ModelSpec(name="m", task="t", classes=CLASSES, preprocessing=PreprocessingSpec(size=(32, 32)), modality="MR")
    save_bundle(folder / "bundle", spec, network_of(spec))
    return register_bundle(context, folder / "bundle", manifest, actor="test", accept=lambda _: True)


def test_a_registration_keeps_its_test_set_as_it_is_and_under_each_fault(context, tmp_path):
    register(context, tmp_path)
    with context.database.read() as session:
        seen, faults = signatures.faults(session, "m", 1)
        keys = set(session.exec(select(ReferenceSignature.case_key)))
    assert len(seen) == 12
    assert seen.quality.shape == (12, len(QUALITY))
    assert seen.layout.shape == (12, LAYOUT)
    assert seen.embedding.shape == (12, 64)
    assert seen.facets[0]["Modality"] == "MR"
    assert {"inverted", "turned by 90 degrees", "window too narrow"} <= set(faults)
    assert all(images.keys == seen.keys for images in faults.values())
    assert np.allclose(faults["inverted"].layout, 1 - seen.layout, atol=0.01)
    assert keys == {baseline_key(f"test/{number}.dcm") for number in range(12)}


def test_a_later_version_shares_its_ancestors_probes_and_replaces_only_what_it_brings(context, tmp_path):
    register(context, tmp_path)
    with context.database.read() as session:
        first, _ = signatures.faults(session, "m", 1)
    case = ScoredCase("live", "p", "low", "low", {"low": 1.0, "high": 0.0}, embedding=np.ones(64, np.float32))
    with context.database.transaction() as tx:
        signatures.replace_reference(tx, "m", 2, signatures.reference_rows("m", 2, [case], ["live"]))
        signatures.replace_reference(tx, "m", 1, signatures.reference_rows("m", 1, [], []))
    with context.database.read() as session:
        assert len(signatures.reference(session, "m", 2)) == 0
        again, faults = signatures.faults(session, "m", 2)
    assert np.array_equal(again.quality, first.quality)
    assert len(faults["inverted"]) == 12
