"""A model's life at the command line: a wrong first version, the next one, a candidate, the way back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from schemas.tables import Audit, BaselineCase, Evaluation, ModelVersion, Outbox
from schemas.vocabulary import VersionState
from services.runtime import registry
from services.runtime.service import Context
from tests.shade_images import CLASSES, write_shades

Reclaim = Callable[..., Any]
TRAIN = ("--name", "shade", "--task", "shade", "--modality", "MR", "--size", "16", "--epochs", "12")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A manifest of plain images, dark or light on one side, and one whose labels say nothing."""
    rows = write_shades(tmp_path, {"train": 24, "valid": 8, "test": 24})
    senseless = [rows[0]]
    for number, row in enumerate(rows[1:]):
        path, _, patient, split = row.split(",")
        senseless.append(",".join([path, CLASSES[number // 2 % 2], patient, split]))
    (tmp_path / "senseless.csv").write_text("\n".join(senseless) + "\n")
    return tmp_path


def states(site: Context) -> list[str]:
    with site.database.read() as session:
        return [row.state for row in registry.versions(session, "shade")]


def test_a_version_at_chance_level_is_warned_of_and_does_not_serve_unasked(reclaim: Reclaim, data: Path, site: Context) -> None:
    said = reclaim("models", "train", str(data / "senseless.csv"), *TRAIN)
    assert said.code == 1
    assert "no better than guessing" in said.text
    assert "95 % interval" in said.text
    assert states(site) == [VersionState.CANDIDATE]
    refused = reclaim("models", "promote", "shade", "1", "--reason", "a try")
    assert (refused.code, states(site)) == (1, [VersionState.CANDIDATE])
    taken = reclaim("models", "promote", "shade", "1", "--reason", "a try", "--yes")
    assert (taken.code, states(site)) == (0, [VersionState.CHAMPION])
    assert "against its baseline" in taken.text
    with site.database.read() as session:
        began = session.exec(select(Audit).where(Audit.action == "version.began_serving")).one()
    assert (began.detail["reason"], began.detail["at_chance"]) == ("a try", True)
    assert "no better than guessing" in reclaim("doctor").text


def test_a_wrong_first_version_is_retired_and_trained_anew(reclaim: Reclaim, data: Path, site: Context) -> None:
    assert reclaim("models", "train", str(data / "senseless.csv"), *TRAIN, "--yes").code == 0
    assert states(site) == [VersionState.CHAMPION]
    assert reclaim("models", "retire", "shade").code == 2, "without a terminal nobody could answer"
    assert reclaim("models", "retire", "shade", "--yes", "--reason", "wrong labels").code == 0
    said = reclaim("models", "train", str(data / "manifest.csv"), *TRAIN[:-1], "60")
    assert said.code == 0, said.text
    assert "It serves from the next study on" in said.text
    assert "On its own test cases: balanced accuracy" in said.text
    assert states(site) == [VersionState.RETIRED, VersionState.CHAMPION]


def served(site: Context, *more: str) -> None:
    """Version 1 serves with a sound baseline; `more` are the states of further versions."""
    with site.database.transaction() as tx:
        registry.register_model(tx, "shade", "shade", list(CLASSES), {})
        for number, state in enumerate(["candidate", *more], start=1):
            row = ModelVersion(model="shade", version=number, state=state, bundle="b", sha256="0", created_at=tx.clock.now())
            cases = [
                BaselineCase(
                    model="shade",
                    version=number,
                    case_key=f"{name}{case}",
                    patient_key=f"{name}{case}",
                    truth=name,
                    predicted=name,
                    probabilities={},
                )
                for name in CLASSES
                for case in range(20)
            ]
            registry.add_version(tx, row, cases, actor="test")


def test_a_rollback_may_name_its_version_and_be_undone(reclaim: Reclaim, site: Context) -> None:
    served(site, "archived", "rejected")
    assert reclaim("models", "rollback", "shade", "--to", "2").code == 0
    assert states(site) == [VersionState.ARCHIVED, VersionState.CHAMPION, VersionState.REJECTED]
    assert reclaim("models", "rollback", "shade", "--to", "1").code == 0
    assert "versions that may come back: 2" in reclaim("models", "rollback", "shade", "--to", "3").text
    assert states(site)[0] == VersionState.CHAMPION


def test_a_rollback_keeps_its_reason_and_says_how_the_old_version_did(reclaim: Reclaim, site: Context) -> None:
    served(site, "archived")
    old = {"model": "shade", "version": 2, "status": "degraded", "diagnosis": "covariate", "summary": "It misses [half]."}
    counts = {"cases": 9, "stream_cases": 9, "metrics": [], "evidence": {}, "reclaim_rule": False}
    with site.database.transaction() as tx:
        tx.session.add(Evaluation(evaluation_id="e", batch_id="b", evaluated_at=tx.clock.now(), **old, **counts))
    said = reclaim("models", "rollback", "shade", "--to", "2", "--reason", "slower reading").text
    assert "version 2 serves again" in said
    assert "found it degraded. It misses [half]." in said
    with site.database.read() as session:
        audited = session.exec(select(Audit).where(Audit.action == "version.rolled_back")).one()
        event = session.exec(select(Outbox).where(Outbox.topic == "maintenance.promotion.v1")).one()
    assert audited.detail["reason"] == "slower reading"
    assert json.loads(event.body)["reasons"][1] == "slower reading"
    assert "degraded" not in reclaim("models", "rollback", "shade", "--to", "1").text


@pytest.mark.parametrize(
    ("version", "part"), [("1", "serves already"), ("2", "rollback shade --to 2"), ("3", "only a candidate"), ("9", "has 1, 2, 3")]
)
def test_what_cannot_be_promoted_is_told(reclaim: Reclaim, site: Context, version: str, part: str) -> None:
    served(site, "archived", "rejected")
    said = reclaim("models", "promote", "shade", version, "--reason", "r")
    assert (said.code, part in said.text) == (2, True), said.text
    assert states(site)[0] == VersionState.CHAMPION


def test_retiring_the_champion_names_the_way_back(reclaim: Reclaim, site: Context) -> None:
    served(site, "archived")
    assert "rollback shade --to 2" in reclaim("models", "retire", "shade", "--version", "1", "--yes").text
    assert reclaim("models", "rollback", "shade", "--to", "2").code == 0
    assert states(site) == [VersionState.RETIRED, VersionState.CHAMPION]


def test_a_name_for_another_task_is_refused_before_the_training(reclaim: Reclaim, data: Path, site: Context) -> None:
    served(site)
    said = reclaim("models", "train", str(data / "manifest.csv"), "--name", "shade", "--task", "other", "--modality", "MR")
    assert said.code == 2
    assert "models retire shade" in said.text
