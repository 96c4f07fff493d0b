"""The registry's transitions on both engines: what may serve, and where a rollback goes."""

import pytest
from sqlmodel import select

from schemas.tables import Audit, BaselineCase, ModelVersion
from schemas.vocabulary import VersionState
from services.runtime import registry
from services.runtime.database import Database
from services.runtime.errors import InvalidInput
from services.runtime.transaction import Transaction


def enter(tx: Transaction, number: int, state: str = VersionState.CHALLENGER, cases: int = 0) -> None:
    now, sha256, probabilities = tx.clock.now(), "0" * 64, {"a": 1.0, "b": 0.0}
    row = ModelVersion(model="chest", version=number, state=state, bundle=f"chest/{number}", sha256=sha256, created_at=now)
    keys = {"model": "chest", "version": number, "truth": "a", "predicted": "a", "probabilities": probabilities}
    rows = [BaselineCase(case_key=f"c{i}", patient_key=f"p{i}", **keys) for i in range(cases)]
    registry.add_version(tx, row, rows, actor="user:tester")


@pytest.fixture
def registered(database: Database) -> Database:
    with database.transaction() as tx:
        registry.register_model(tx, "chest", "pneumonia", ["a", "b"], {})
        enter(tx, 1, VersionState.CANDIDATE, cases=3)
        enter(tx, 2)
    return database


def states(database: Database) -> dict[int, str]:
    with database.read() as session:
        return {row.version: row.state for row in registry.versions(session, "chest")}


def test_the_first_version_serves_and_keeps_its_baseline(registered: Database) -> None:
    assert states(registered) == {1: "champion", 2: "challenger"}
    with registered.read() as session:
        assert registry.model(session, "chest").champion == 1
        assert len(registry.baseline(session, "chest", 1)) == 3
        assert registry.next_version(session, "chest") == 3
        assert [version.version for _, version in registry.scoring_versions(session)] == [1, 2]


def test_promotion_and_rollback(registered: Database) -> None:
    with registered.transaction() as tx:
        assert registry.promote(tx, "chest", 2, actor="gate", p_value=0.01) == 1
    assert states(registered) == {1: "archived", 2: "champion"}
    with registered.transaction() as tx:
        assert registry.roll_back(tx, "chest", actor="user:tester") == (2, 1)
    assert states(registered) == {1: "champion", 2: "archived"}
    with registered.read() as session:
        actions = session.exec(select(Audit.action).order_by(Audit.id)).all()
    assert actions == ["version.added", "version.added", "version.promoted", "version.rolled_back"]


def test_a_failed_transaction_promotes_nothing(registered: Database) -> None:
    with pytest.raises(RuntimeError), registered.transaction() as tx:
        registry.promote(tx, "chest", 2, actor="gate")
        raise RuntimeError
    assert states(registered) == {1: "champion", 2: "challenger"}


@pytest.mark.parametrize("number", [1, 3, 9])
def test_only_a_challenger_can_be_promoted(registered: Database, number: int) -> None:
    with registered.transaction() as tx:
        enter(tx, 3, VersionState.REJECTED)
    with pytest.raises(InvalidInput), registered.transaction() as tx:
        registry.promote(tx, "chest", number, actor="gate")
    assert states(registered)[1] == "champion"


def test_a_rejected_challenger_is_no_longer_scored(registered: Database) -> None:
    with registered.transaction() as tx:
        registry.reject(tx, "chest", 2, actor="gate", p_value=0.7)
    with registered.read() as session:
        assert [version.version for _, version in registry.scoring_versions(session)] == [1]
    with pytest.raises(InvalidInput), registered.transaction() as tx:
        registry.promote(tx, "chest", 2, actor="gate")


def test_without_an_earlier_champion_there_is_no_rollback(registered: Database) -> None:
    with pytest.raises(InvalidInput, match="no earlier champion"), registered.transaction() as tx:
        registry.roll_back(tx, "chest", actor="user:tester")


def test_a_stopped_model_scores_nothing_until_resumed(registered: Database) -> None:
    for serving, expected in ((False, []), (True, [1, 2])):
        with registered.transaction() as tx:
            registry.set_serving(tx, "chest", serving=serving, actor="user:tester")
        with registered.read() as session:
            assert [version.version for _, version in registry.scoring_versions(session)] == expected


@pytest.mark.parametrize(("task", "classes"), [("other", ["a", "b"]), ("pneumonia", ["a"]), ("pneumonia", ["b", "a", "c"])])
def test_a_model_keeps_its_task_and_classes(registered: Database, task: str, classes: list[str]) -> None:
    with registered.transaction() as tx:
        assert registry.register_model(tx, "chest", "pneumonia", ["a", "b"], {}).champion == 1
    with pytest.raises(InvalidInput, match="registered for task"), registered.transaction() as tx:
        registry.register_model(tx, "chest", task, classes, {})


def test_unknown_names_are_answered_with_the_known_ones(registered: Database) -> None:
    with registered.read() as session, pytest.raises(InvalidInput, match="chest"):
        registry.model(session, "brain")
    with registered.read() as session, pytest.raises(InvalidInput, match="no version 7"):
        registry.version(session, "chest", 7)


def test_a_rollback_may_go_to_any_version_that_has_served(registered: Database) -> None:
    with registered.transaction() as tx:
        registry.promote(tx, "chest", 2, actor="gate")
        enter(tx, 3)
        registry.promote(tx, "chest", 3, actor="gate")
        assert registry.roll_back(tx, "chest", 1, actor="user:tester") == (3, 1)
        assert registry.roll_back(tx, "chest", 3, actor="user:tester") == (1, 3), "the way back is open"
        assert registry.served_versions(tx.session, "chest") == [2, 1]
    assert states(registered) == {1: "archived", 2: "archived", 3: "champion"}


@pytest.mark.parametrize(("number", "why"), [(3, "is rejected"), (2, "is challenger"), (1, "serves already"), (9, "no version 9")])
def test_a_rollback_cannot_make_serve_what_has_not_served(registered: Database, number: int, why: str) -> None:
    with registered.transaction() as tx:
        enter(tx, 3, VersionState.REJECTED)
    with pytest.raises(InvalidInput, match=why), registered.transaction() as tx:
        registry.roll_back(tx, "chest", number, actor="user:tester")
    assert states(registered)[1] == "champion"


def test_a_wrong_first_version_is_retired_and_the_next_one_serves(registered: Database) -> None:
    with registered.transaction() as tx:
        assert registry.retire(tx, "chest", 1, actor="user:tester", reason="wrong labels") == [1]
    with registered.read() as session:
        assert registry.model(session, "chest").champion is None
        assert [version.version for _, version in registry.scoring_versions(session)] == [2]
        assert len(registry.baseline(session, "chest", 1)) == 3, "the data stay"
        assert session.exec(select(Audit.detail).where(Audit.action == "version.retired")).one()["reason"] == "wrong labels"
    with registered.transaction() as tx:
        enter(tx, 3, VersionState.CANDIDATE, cases=2)
    assert states(registered) == {1: "retired", 2: "challenger", 3: "champion"}


def test_retiring_a_champion_rejects_the_challengers_made_from_it(registered: Database) -> None:
    with registered.transaction() as tx:
        registry.version(tx.session, "chest", 2).parent = 1
        registry.retire(tx, "chest", 1, actor="user:tester")
    assert states(registered) == {1: "retired", 2: "rejected"}


def test_a_retired_version_never_serves_again(registered: Database) -> None:
    with registered.transaction() as tx:
        registry.promote(tx, "chest", 2, actor="gate")
        registry.retire(tx, "chest", 1, actor="user:tester")
    for number in (None, 1):
        with pytest.raises(InvalidInput), registered.transaction() as tx:
            registry.roll_back(tx, "chest", number, actor="user:tester")
    with pytest.raises(InvalidInput, match="retired already"), registered.transaction() as tx:
        registry.retire(tx, "chest", 1, actor="user:tester")
    assert states(registered) == {1: "retired", 2: "champion"}


def test_a_rollback_passes_over_a_retired_version(registered: Database) -> None:
    with registered.transaction() as tx:
        registry.promote(tx, "chest", 2, actor="gate")
        enter(tx, 3)
        registry.promote(tx, "chest", 3, actor="gate")
        registry.retire(tx, "chest", 2, actor="user:tester")
        assert registry.roll_back(tx, "chest", actor="user:tester") == (3, 1)


def test_a_retired_model_is_defined_anew(registered: Database) -> None:
    with registered.transaction() as tx:
        assert registry.retire(tx, "chest", actor="user:tester") == [1, 2]
        registry.register_model(tx, "chest", "effusion", ["x", "y", "z"], {"modalities": ["CR"]})
        enter(tx, 3, VersionState.CANDIDATE)
    with registered.read() as session:
        row = registry.model(session, "chest")
    assert (row.task, row.classes, row.selection, row.champion) == ("effusion", ["x", "y", "z"], {"modalities": ["CR"]}, 3)


def test_a_candidate_begins_to_serve_only_where_none_does_and_with_a_baseline(registered: Database) -> None:
    with registered.transaction() as tx:
        enter(tx, 3, VersionState.CANDIDATE, cases=2)
        enter(tx, 4, VersionState.CANDIDATE)
    with pytest.raises(InvalidInput, match="only through the gate"), registered.transaction() as tx:
        registry.begin_serving(tx, "chest", 3, actor="user:tester")
    with registered.transaction() as tx:
        registry.retire(tx, "chest", 1, actor="user:tester")
    for number, why in ((4, "no baseline"), (2, "challenger"), (1, "retired")):
        with pytest.raises(InvalidInput, match=why), registered.transaction() as tx:
            registry.begin_serving(tx, "chest", number, actor="user:tester")
    with registered.transaction() as tx:
        registry.begin_serving(tx, "chest", 3, actor="user:tester", reason="first one was wrong")
    assert states(registered)[3] == "champion"


def test_a_version_that_nobody_vouches_for_stays_a_candidate(sqlite_database: Database) -> None:
    with sqlite_database.transaction() as tx:
        registry.register_model(tx, "chest", "pneumonia", ["a", "b"], {})
        row = ModelVersion(model="chest", version=1, bundle="b", sha256="0", created_at=tx.clock.now())
        registry.add_version(tx, row, [], actor="user:tester", serve=False)
        assert (row.state, registry.model(tx.session, "chest").champion) == ("candidate", None)


def test_a_name_that_is_not_found_is_answered_with_the_nearest(registered: Database) -> None:
    with registered.read() as session, pytest.raises(InvalidInput, match="did you mean chest"):
        registry.model(session, "chset")


@pytest.mark.parametrize(
    ("number", "champion", "words"),
    [(1, 2, "version 2 does"), (1, None, "none does since it was retired"), (None, None, "no version of 'chest' serves")],
)
def test_a_stale_order_is_told_what_serves(number: int | None, champion: int | None, words: str) -> None:
    assert registry.stale("chest", number, champion).endswith(words)
