"""A damaged version stops its own model only, loudly, and its studies wait until it is whole; on both database engines."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from sqlalchemy import select

from models.bundle import load_bundle, network_of, save_bundle
from models.predictor import Predictor
from models.spec import ModelSpec, SelectionRule
from schemas.settings import Settings
from schemas.tables import Audit
from schemas.vocabulary import VersionState
from services.inference.app import build
from services.inference.bundles import RETRY_S
from services.inference.mending import mend
from services.inference.repository import unscored
from services.inference.unscored import BROKEN
from services.runtime import registry
from services.runtime.consumer import process
from tests.inference_archive import CT, SPEC, announced_again, archived, letters, notes, predictions, record, register


def tampered(folder: Path) -> bytes:
    """Change one byte of a bundle's weights; gives the file as it was."""
    weights = folder / "models" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    return whole


def broken(context):
    with context.database.read() as session:
        return session.execute(select(Audit).where(Audit.action == "version.broken")).scalars().all()


def test_a_broken_challenger_is_skipped_loudly_and_recorded_once(context, consumer, caplog):
    register(context, "m", 1)
    tampered(register(context, "m", 2, state=VersionState.CHALLENGER))
    with caplog.at_level(logging.CRITICAL):
        for _ in range(2):
            process(context.database, consumer, [record(archived(context, CT))])
    assert [each.version for each in predictions(context)] == [1, 1]
    assert "m:2 cannot score" in caplog.text
    [entry] = broken(context)
    assert (entry.subject, entry.detail["serving"]) == ("m:2", False)
    assert notes(context) == [], "the champion has scored them"


def test_a_broken_champion_stops_its_own_model_only_and_its_studies_wait(context, consumer, caplog):
    register(context, "sound")
    folder = register(context, "m")
    whole, study = tampered(folder), archived(context, CT)
    with caplog.at_level(logging.CRITICAL):
        assert process(context.database, consumer, [record(study)]) == 0
    assert [each.model for each in predictions(context)] == ["sound"]
    assert "m:1 cannot score" in caplog.text
    [entry] = broken(context)
    assert (entry.subject, entry.detail["serving"]) == ("m:1", True)
    assert [(note.study_key, note.model, note.reason) for note in notes(context)] == [(study.study_key, "m", BROKEN)]
    with context.database.read() as session:
        [kind] = unscored(session, context.clock.now(), BROKEN)
    assert (kind.model, kind.studies, kind.damaged) == ("m", 1, True)
    assert letters(context) == []
    assert (mend(context.database, consumer.bundles), announced_again(context)) == ((), []), "as long as it is damaged"
    (folder / "models" / "model.safetensors").write_bytes(whole)
    assert mend(context.database, consumer.bundles) == ("m",)
    again = announced_again(context)
    assert process(context.database, consumer, again) == 0
    assert [(each.model, each.study_key) for each in predictions(context)] == [("sound", study.study_key), ("m", study.study_key)]
    assert (notes(context), mend(context.database, consumer.bundles)) == ([], ())


def test_studies_that_wait_are_scored_by_the_version_that_a_rollback_brings_back(sqlite_context, sqlite_consumer):
    register(sqlite_context, "m", 1)
    tampered(register(sqlite_context, "m", 2, state=VersionState.CHALLENGER, seed=1))
    with sqlite_context.database.transaction() as tx:
        registry.promote(tx, "m", 2, actor="test")
    study = archived(sqlite_context, CT)
    process(sqlite_context.database, sqlite_consumer, [record(study)])
    with sqlite_context.database.transaction() as tx:
        registry.roll_back(tx, "m", actor="test")
    assert mend(sqlite_context.database, sqlite_consumer.bundles) == ("m",)
    process(sqlite_context.database, sqlite_consumer, announced_again(sqlite_context))
    assert [(each.version, each.study_key) for each in predictions(sqlite_context)] == [(1, study.study_key)]


def test_a_restored_bundle_is_found_without_a_restart(sqlite_context, sqlite_consumer):
    folder = register(sqlite_context, "m")
    whole = tampered(folder)
    process(sqlite_context.database, sqlite_consumer, [record(archived(sqlite_context, CT))])
    (folder / "models" / "model.safetensors").write_bytes(whole)
    for wait, scored in ((RETRY_S - 1, 0), (1, 1)):
        sqlite_context.clock.advance(wait)
        process(sqlite_context.database, sqlite_consumer, [record(archived(sqlite_context, CT))])
        assert len(predictions(sqlite_context)) == scored


def other_weights(folder: Path) -> None:
    spec = load_bundle(folder).spec.model_copy(update={"seed": 9})
    shutil.rmtree(folder)
    save_bundle(folder, spec, network_of(spec))


@pytest.mark.parametrize("harm", [shutil.rmtree, other_weights, tampered])
def test_weights_that_are_not_the_registered_ones_are_never_used(sqlite_context, sqlite_consumer, harm):
    harm(register(sqlite_context, "m"))
    process(sqlite_context.database, sqlite_consumer, [record(archived(sqlite_context, CT))])
    assert (predictions(sqlite_context), letters(sqlite_context)) == ([], [])
    assert [each.reason for each in notes(sqlite_context)] == [BROKEN]


@pytest.mark.parametrize("harm", ["too small for its network", "not a number"])
def test_a_version_whose_network_cannot_score_is_broken_and_takes_no_other_with_it(sqlite_context, sqlite_consumer, harm):
    register(sqlite_context, "sound")
    size = (48, 48) if harm.startswith("too") else SPEC.size
    network = "inception_v3" if harm.startswith("too") else "small"
    preprocessing = SPEC.model_copy(update={"size": size})
    spec = ModelSpec(name="m", task="finding", classes=("normal", "abnormal"), network=network, preprocessing=preprocessing)
    module = network_of(spec)
    if network == "small":
        with torch.no_grad():
            module.head.weight.fill_(float("nan"))
    folder = register(sqlite_context, "m")
    shutil.rmtree(folder)
    info = save_bundle(folder, spec, module)
    with sqlite_context.database.transaction() as tx:
        registry.version(tx.session, "m", 1).sha256 = info.sha256
    assert process(sqlite_context.database, sqlite_consumer, [record(archived(sqlite_context, CT))]) == 0
    assert [each.model for each in predictions(sqlite_context)] == ["sound"]
    [entry] = broken(sqlite_context)
    assert "does not take images of its own specification" in entry.detail["reason"]


def test_a_want_of_memory_is_no_damage(sqlite_context, sqlite_consumer, monkeypatch):
    def full(self: Predictor, images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Predictor, "probabilities", full)
    register(sqlite_context, "m")
    with pytest.raises(torch.OutOfMemoryError):
        process(sqlite_context.database, sqlite_consumer, [record(archived(sqlite_context, CT))])


async def test_the_service_looks_after_damaged_versions_until_it_is_told_to_stop(sqlite_context):
    service = build(sqlite_context)
    [worker] = service.workers
    register(sqlite_context, "m", rule=SelectionRule(modalities=("CT",)))

    class Once:
        """A signal that is set after one look."""

        looks = 0

        @property
        def is_set(self) -> bool:
            self.looks += 1
            return self.looks > 1

        async def wait(self) -> None:
            return

    await worker.run(Once())
    for close in service.on_close:
        close()
    assert worker.name == "inference.mending"
    assert isinstance(sqlite_context.settings, Settings)
