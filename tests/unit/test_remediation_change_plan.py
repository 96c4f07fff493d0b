"""Change control plans: read or refused with every fault, and what they allow."""

import json
from datetime import date
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from agents.guardrails import Actor, Facts, Limits, Refused, check
from agents.ladder import next_rung
from agents.proposals import Proposal
from listeners.cli.main import app
from schemas.change_plan import LIMITED
from schemas.settings import RemediationSettings, Settings
from schemas.vocabulary import Diagnosis, OrderKind, Remedy, Status, UserRole
from services.remediation.options import RunOptions
from services.reporting.rules import rules_for
from services.runtime.change_plans import (
    citation,
    latency_limit,
    plan_of,
    read_plan,
    require_owner_versions,
    require_planned,
    require_unchanged,
    tightened,
)
from services.runtime.errors import InvalidInput

TODAY = date(2026, 6, 1)
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "change-plan.yaml"


@pytest.fixture
def document() -> dict:
    return yaml.safe_load(EXAMPLE.read_text())


def written(folder: Path, document: dict, name: str = "plan.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(document))
    return folder / name


def test_the_example_is_valid_and_covers_what_it_says():
    read = read_plan(EXAMPLE)
    assert read.plan.remedies() == (
        Remedy.RETHRESHOLD,
        Remedy.RECALIBRATE,
        Remedy.HARMONISE,
        Remedy.ADAPT_STATISTICS,
        Remedy.HEAD_ONLY,
        Remedy.PARTIAL,
        Remedy.PARAMETER_EFFICIENT,
    )
    clause = require_planned(read, Remedy.PARTIAL, {"epochs": 8, "rehearsal_share": 0.5})
    assert clause.id == "M3"
    assert citation(read, clause) == f"change control plan 1.0 ({read.sha256[:12]}), clause M3"
    assert citation(None, None) == ""


@pytest.mark.parametrize(
    ("remedy", "settings", "words"),
    [
        (Remedy.FULL, {}, "full is no modification of the change control plan 1.0"),
        (Remedy.PARTIAL, {"epochs": 90}, "epochs 90 is outside 1 to 30 .* clause M3"),
        (Remedy.HEAD_ONLY, {"rehearsal_share": 0.0}, "rehearsal_share 0.0 is outside .* clause M3"),
    ],
)
def test_an_order_outside_the_plan_is_refused_with_the_clause(remedy, settings, words):
    with pytest.raises(InvalidInput, match=words):
        require_planned(read_plan(EXAMPLE), remedy, settings)
    assert require_planned(None, remedy, settings) is None


def test_a_version_that_a_person_brings_needs_its_clause(document, tmp_path):
    with pytest.raises(InvalidInput, match="a person brings"):
        require_owner_versions(read_plan(EXAMPLE))
    document["modifications"][0]["owner_versions"] = True
    assert require_owner_versions(read_plan(written(tmp_path, document))).id == "M1"
    assert require_owner_versions(None) is None


def test_the_stricter_of_plan_and_settings_holds():
    read = read_plan(EXAMPLE)
    loose = RemediationSettings(gate_alpha=0.1, gate_margin=0.2, min_gate_cases=10, min_tune_cases=10)
    tight = RemediationSettings(gate_alpha=0.01, gate_margin=0.01, min_gate_cases=500, min_tune_cases=500)
    found = tightened(loose, read)
    assert (found.gate_alpha, found.gate_margin, found.min_gate_cases, found.min_tune_cases) == (0.05, 0.05, 60, 40)
    assert tightened(tight, read) == tight
    assert tightened(loose, None) is loose
    assert (latency_limit(read), latency_limit(None)) == (1.5, 2.0)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda each: each.pop("impact_assessment"), "impact_assessment: Field required"),
        (lambda each: each["modifications"][1].update(id="M1"), "clauses must be distinct: M1"),
        (lambda each: each["modifications"][0].update(remedies=["magic"]), r"modifications\[0\].remedies\[0\]"),
        (lambda each: each["protocol"]["acceptance"].update(margin=0.9), "protocol.acceptance.margin"),
        (lambda each: each.update(surprise=1), "surprise: Extra inputs"),
        (lambda each: each["modifications"][2]["settings"]["epochs"].update(least=99), "least must not be above most"),
        (lambda each: [part.update(remedies=[]) for part in each["modifications"]], "no modification names a remedy"),
        (lambda each: each["modifications"][2]["settings"].update(epoch={"least": 1, "most": 3}), "no setting .* epoch; .* epochs"),
        (lambda each: each.update(valid_until="2026-01-01"), "valid_until must not be before approved_on"),
        (lambda each: each.update(approved_on="2026-02-30"), "approved_on"),
    ],
)
def test_a_faulty_plan_is_refused_with_its_faults(document, tmp_path, break_it, words):
    break_it(document)
    path = written(tmp_path, document)
    with pytest.raises(InvalidInput, match=words):
        read_plan(path)
    done = CliRunner().invoke(app, ["models", "plan", "check", str(path)])
    assert done.exit_code != 0


def test_a_file_that_is_no_document_is_refused(tmp_path):
    for name, text in (("a.yaml", "a: [1"), ("b.json", "{"), ("c.yaml", "- 1")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InvalidInput, match=name):
            read_plan(tmp_path / name)


def test_a_models_plan_is_found_by_its_name(document, tmp_path):
    settings = Settings(state_dir=tmp_path)
    assert plan_of(settings, "brain-mri", TODAY) is None
    written(tmp_path / "plans", document, "brain-mri.json")
    assert plan_of(settings, "brain-mri", TODAY).plan.model == "brain-mri"
    assert plan_of(settings, "../plans/brain-mri", TODAY) is None
    written(tmp_path / "plans", document, "other.json")
    with pytest.raises(InvalidInput, match="is for model 'brain-mri'"):
        plan_of(settings, "other", TODAY)
    written(tmp_path / "plans", document, "brain-mri.yaml")
    with pytest.raises(InvalidInput, match="several"):
        plan_of(settings, "brain-mri", TODAY)


@pytest.mark.parametrize(
    ("today", "words"),
    [
        (date(2026, 3, 1), "in force from 2026-03-02 on"),
        (date(2026, 3, 2), ""),
        (date(2026, 9, 30), ""),
        (date(2026, 10, 1), "was valid until 2026-09-30: nothing may change"),
    ],
)
def test_outside_its_dates_a_plan_lets_nothing_change_and_reports_say_so(document, tmp_path, today, words):
    settings = Settings(state_dir=tmp_path)
    written(tmp_path / "plans", document | {"valid_until": "2026-09-30"}, "brain-mri.json")
    told = rules_for(settings, "brain-mri", today)
    assert (told.plan is None) is bool(words)
    assert words in told.plan_fault
    if not words:
        assert plan_of(settings, "brain-mri", today).plan.valid_until == date(2026, 9, 30)
        return
    with pytest.raises(InvalidInput, match=words):
        plan_of(settings, "brain-mri", today)
    with pytest.raises(InvalidInput, match=words):
        require_unchanged(settings, "brain-mri", None, today)


def test_every_number_that_an_order_may_set_can_be_limited():
    numbers = {name for name, field in RunOptions.model_fields.items() if field.annotation in {int, float, float | None}}
    assert set(LIMITED) == numbers


def test_the_command_says_that_a_plan_is_not_in_force(document, tmp_path):
    for dates, words in (({"valid_until": "2026-03-03"}, "was valid until"), ({"approved_on": "2999-01-01"}, "in force from 2999")):
        done = CliRunner().invoke(app, ["models", "plan", "check", str(written(tmp_path, document | dates))])
        assert (done.exit_code, words in done.output.replace("\n", " ")) == (0, True), done.output


def test_the_command_says_what_a_plan_covers():
    done = CliRunner().invoke(app, ["models", "plan", "check", str(EXAMPLE)])
    assert done.exit_code == 0, done.output
    for words in ("M3", "parameter_efficient", "margin 0.05", "is valid"):
        assert words in done.output


def test_the_ladder_climbs_only_what_the_plan_covers():
    covered = read_plan(EXAMPLE).plan.remedies()
    assert next_rung(80, 40, [Remedy.PARAMETER_EFFICIENT], Diagnosis.COVARIATE, covered) is None
    assert next_rung(80, 40, [], Diagnosis.UNKNOWN, (Remedy.HEAD_ONLY,)) == Remedy.HEAD_ONLY
    assert next_rung(80, 40, [], Diagnosis.COVARIATE, ()) is None


def test_the_guardrails_refuse_what_the_plan_does_not_cover():
    facts = Facts(
        now="2026-03-02T00:00:00Z",
        models=("brain-mri",),
        versions=(1,),
        champion=1,
        status=Status.DEGRADED,
        tune_cases=80,
        gate_cases=80,
    )
    proposal = Proposal(kind=OrderKind.REMEDY, model="brain-mri", version=1, remedy=Remedy.FULL)
    owner = Actor(name="user:o", role=UserRole.ML_OWNER)
    outside = facts.model_copy(update={"outside_plan": "full is no modification of the plan"})
    verdict = check(proposal, owner, outside, Limits())
    assert isinstance(verdict, Refused)
    assert verdict.reason == "Full is no modification of the plan."
    assert not isinstance(check(proposal, owner, facts, Limits()), Refused)
