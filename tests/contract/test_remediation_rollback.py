"""The rollback at the command line waits for whoever is changing the champion."""

from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from listeners.cli import models as commands
from schemas.tables import ModelVersion, RegisteredModel
from schemas.vocabulary import VersionState
from services.remediation import repository
from services.runtime import registry
from services.runtime.service import Context


def test_a_rollback_during_a_promotion_takes_the_promoted_version_out(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "open_context", lambda: context)
    with context.database.transaction() as tx:
        registry.register_model(tx, "chest", "pneumonia", ["a", "b"], {})
        for number in (1, 2, 3):
            state = VersionState.CANDIDATE if number == 1 else VersionState.CHALLENGER
            row = ModelVersion(model="chest", version=number, state=state, bundle="b", sha256="0", created_at=tx.clock.now())
            registry.add_version(tx, row, [], actor="test")
        registry.promote(tx, "chest", 2, actor="test")
    with ThreadPoolExecutor(1) as pool:
        with context.database.transaction() as tx:
            repository.lock_model(tx.session, "chest")
            rollback = pool.submit(commands.rollback, "chest")
            wait([rollback], 0.5)
            registry.promote(tx, "chest", 3, actor="test")
        rollback.result(30)
    with context.database.read() as session:
        assert session.get_one(RegisteredModel, "chest").champion == 2
        states = {number: session.get_one(ModelVersion, ("chest", number)).state for number in (1, 2, 3)}
    assert states == {1: VersionState.ARCHIVED, 2: VersionState.CHAMPION, 3: VersionState.ARCHIVED}
