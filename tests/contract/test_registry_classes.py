"""Classes that a version has behind those of the model: whose they are, and from when on."""

from sqlmodel import Session

from schemas.tables import ModelVersion
from schemas.vocabulary import VersionState
from services.evaluation import repository as evaluation
from services.ground_truth.repository import classes_by_task
from services.inference.repository import scoring_versions
from services.runtime import registry
from services.runtime.database import Database
from services.runtime.transaction import Transaction

OLD, NEW = ["none", "glioma"], ["none", "glioma", "abscess"]


def enter(tx: Transaction, number: int, state: VersionState, classes: list[str]) -> None:
    registry.register_model(tx, "brain", "tumour", classes, {})
    row = ModelVersion(
        model="brain", version=number, state=state, bundle="b", sha256="0" * 64, classes=classes, created_at=tx.clock.now()
    )
    registry.add_version(tx, row, [], actor="user:tester")


def model_classes(session: Session) -> list[str]:
    return registry.model(session, "brain").classes


def test_a_new_class_is_the_versions_until_it_serves_and_not_after_the_way_back(database: Database) -> None:
    with database.transaction() as tx:
        enter(tx, 1, VersionState.CANDIDATE, OLD)
        enter(tx, 2, VersionState.CHALLENGER, NEW)
        assert model_classes(tx.session) == OLD
        assert [(each.version, each.classes) for each in scoring_versions(tx.session)] == [(1, frozenset(OLD)), (2, frozenset(NEW))]
        assert registry.classes_of(tx.session, "brain", 2) == evaluation.classes(tx.session, "brain", 2) == tuple(NEW)
        registry.promote(tx, "brain", 2, actor="gate")
        assert model_classes(tx.session) == NEW
        assert evaluation.classes(tx.session, "brain", 1) == tuple(OLD), "the old version's cases are judged by its own"
        registry.roll_back(tx, "brain", actor="user:tester")
        assert model_classes(tx.session) == OLD


def test_labels_of_a_new_class_are_taken_before_its_version_serves(database: Database) -> None:
    """Else the gate could never have cases of it."""
    with database.transaction() as tx:
        enter(tx, 1, VersionState.CANDIDATE, OLD)
        assert classes_by_task(tx.session, ["tumour"]) == {"tumour": OLD}
        enter(tx, 2, VersionState.CANDIDATE, NEW)
        assert classes_by_task(tx.session, ["tumour", "other"]) == {"tumour": NEW}
        registry.retire(tx, "brain", 2, actor="user:tester")
        assert classes_by_task(tx.session, ["tumour"]) == {"tumour": OLD}


def test_a_model_without_versions_has_its_classes(database: Database) -> None:
    with database.transaction() as tx:
        registry.register_model(tx, "brain", "tumour", OLD, {})
        assert classes_by_task(tx.session, ["tumour"]) == {"tumour": OLD}
        assert evaluation.classes(tx.session, "absent", 1) == ()
