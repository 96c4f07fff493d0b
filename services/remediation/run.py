"""One run of a repair on its material: fine-tune the champion, score both versions, judge.

The only effects before the verdict are checkpoints, a bundle nobody knows and progress; a second attempt takes up the first.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.bundle import BundleInfo, load_bundle, save_bundle
from models.data import split_by_patient
from models.remedies import KNOWN, REFERENCE, STRATEGIES, Hooks, RepairData, Repaired, repair
from models.scoring import ScoredCase
from models.training_settings import EpochRecord
from schemas.vocabulary import Remedy
from services.remediation import data, jobs, options
from services.remediation.comparison import Answered, Duel, answered
from services.remediation.criteria import rules_of
from services.remediation.gate import Endpoint, Judgement, Rules, judge
from services.remediation.ids import natural_id
from services.remediation.material import Material
from services.remediation.promise import SCREENED, recovery, unpromising
from services.runtime.change_plans import citation
from services.runtime.errors import InvalidInput
from services.runtime.service import Context

TRAIN, VALID, TEST = "train", "valid", "test"
VALID_SHARE = 0.2
OLD_VALID = 600
"""Most held-out old cases that a repair's choices are made on: it takes hundreds of a class to see a point of its recall."""
CHOICE = 2
"""Old cases that are read for each one that may be rehearsed."""


@dataclass(frozen=True)
class Outcome:
    """A judged challenger, saved as a bundle and not yet entered anywhere."""

    bundle: BundleInfo
    judgement: Judgement
    gate_cases: Sequence[ScoredCase]
    repaired: Repaired
    judged: bool = True
    """False where the repair promised too little to be put to the gate."""


def execute(context: Context, claim: jobs.Claim, material: Material, keeper: jobs.LeaseKeeper) -> Outcome:
    """Repair, save, score, judge. Raises JobStopped, OrderWithdrawn, ModelError."""
    known = _known(context, material, keeper) if claim.remedy == Remedy.HARMONISE else None
    repaired = _repair(context, claim, material, keeper, known)
    keeper.check()
    bundle = _save(context, claim, material, repaired)
    rules, plan = _rules(context, material, claim.remedy), covering(material, claim.remedy)
    duel = Duel(material.champion, load_bundle(bundle.folder), context.settings.inference, keeper.check)
    refused = _screened(claim, material, duel, repaired, rules)
    if refused is not None:
        return Outcome(bundle, cited(refused, plan), (), repaired, judged=False)
    gate = duel.score(material.gate, material.rule)
    baseline = duel.score(data.split_of(material.old, TEST), None, known)
    classes = material.champion.spec.classes
    judgement = judge(gate.paired, baseline.paired, classes, rules, duel.latency_ratio(gate))
    told = recounted(judgement, *recovery(gate.paired, repaired.record.get(REFERENCE, {}), classes))
    return Outcome(bundle, cited(told, plan), gate.challenger, repaired)


def _screened(claim: jobs.Claim, material: Material, duel: Duel, repaired: Repaired, rules: Rules) -> Judgement | None:
    """A rejection without the gate, for a cheap rung that gives back too little; None for whatever shall be judged."""
    if claim.remedy not in SCREENED or repaired.unchanged:
        return None
    taught = duel.score(material.tune, material.rule).paired
    usual = repaired.record.get(REFERENCE, {})
    return unpromising(taught, usual, len(material.gate), material.champion.spec.classes, rules)


def covering(material: Material, remedy: Remedy) -> str:
    """The change control plan and the clause of it that cover the repair; empty where the model has no plan."""
    read = material.change_plan
    return citation(read, read.plan.clause_for(remedy) if read else None)


def cited(judgement: Judgement, plan: str) -> Judgement:
    """The verdict with the change control plan that covers the change among its reasons, where the model has one."""
    return replace(judgement, reasons=(f"Covered by the {plan}.", *judgement.reasons)) if plan else judgement


def recounted(judgement: Judgement, words: str, numbers: Mapping[str, float | None]) -> Judgement:
    """The verdict with how much came back of what was lost; it decides nothing."""
    if not words:
        return judgement
    return replace(judgement, reasons=(words, *judgement.reasons), numbers={**judgement.numbers, **numbers})


def _rules(context: Context, material: Material, remedy: Remedy) -> Rules:
    """A recalibration has to show better probabilities, all else better decisions."""
    endpoint: Endpoint = "probabilities" if remedy == Remedy.RECALIBRATE else "decisions"
    looks, seed = material.looks, material.options.seed
    return rules_of(context.settings, material.change_plan, looks=looks, seed=seed, endpoint=endpoint)


def checkpoints(context: Context, claim: jobs.Claim) -> Path:
    """Where a job's checkpoints lie until it ends."""
    return context.settings.state_dir / "runs" / natural_id("checkpoint", claim.job_id)


def forget(context: Context, claim: jobs.Claim, keep: Path | None = None) -> None:
    """Remove the checkpoints of a job that has ended, and the bundles its attempts left except the one to `keep`."""
    shutil.rmtree(checkpoints(context, claim), ignore_errors=True)
    for folder in (context.settings.models_dir / claim.model).glob(f"{_prefix(claim)}*"):
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)


def _prefix(claim: jobs.Claim) -> str:
    return f"run-{natural_id('bundle', claim.job_id)[:12]}-"


def _repair(context: Context, claim: jobs.Claim, material: Material, keeper: jobs.LeaseKeeper, known: Answered | None) -> Repaired:
    chosen, limits = material.options, context.settings.remediation
    hooks = Hooks(
        on_epoch=lambda record: _report_epoch(context, claim, record, chosen.epochs),
        say=lambda words: _report_step(context, claim, words),
        check=keeper.check,
        should_stop=keeper.must_end,
        checkpoint_dir=checkpoints(context, claim),
    )
    first_rate = options.first_body_rate(material.champion.training)
    ties = options.repair_settings(chosen, context.settings.inference.device, limits.max_cases, limits.devices, first_rate)
    sets = _sets(claim, material, limits.max_cases, keeper)
    if known is not None:
        sets = replace(sets, usual=_usual(known.cases))
    return repair(claim.remedy, material.champion, sets, ties, hooks)


def _sets(claim: jobs.Claim, material: Material, most: int, keeper: jobs.LeaseKeeper) -> RepairData:
    """The studies that the remedy uses, as tensors; what it does not use is not read."""
    spec, seed = material.champion.spec, material.options.seed
    new = data.load(material.tune, spec, material.rule, keeper.check)
    train_part, valid_part = split_by_patient(new.patients, new.labels, (1 - VALID_SHARE, VALID_SHARE), seed)
    if not train_part or not valid_part:
        raise InvalidInput("the cases to learn from come from too few patients to set some aside for validation")
    old, rehearsed = data.split_of(material.old, TRAIN), CHOICE * most if claim.remedy in STRATEGIES else 0
    rehearsed = KNOWN if claim.remedy == Remedy.HARMONISE else rehearsed
    held_out = data.bounded(data.split_of(material.old, VALID), max(OLD_VALID, len(valid_part)), seed)
    return RepairData(
        new=new.subset(train_part),
        new_valid=new.subset(valid_part),
        old=data.load(data.bounded(old, rehearsed, seed), spec, None, keeper.check),
        old_valid=data.load(held_out, spec, None, keeper.check),
        recent=data.load(material.recent, spec, material.rule, keeper.check),
    )


def _known(context: Context, material: Material, keeper: jobs.LeaseKeeper) -> Answered:
    """What the champion says of the baseline: `harmonise` is told the recalls there, and the gate judges by it."""
    tensors = data.load(data.split_of(material.old, TEST), material.champion.spec, None, keeper.check)
    return answered(material.champion, context.settings.inference, tensors)


def _usual(baseline: Sequence[ScoredCase]) -> dict[str, float]:
    """The recall of each class on the baseline, which the gate asks for; of the baseline nothing else is used."""
    right: dict[str, list[bool]] = {}
    for case in baseline:
        right.setdefault(case.truth, []).append(case.predicted == case.truth)
    return {name: sum(each) / len(each) for name, each in right.items()}


def _report_step(context: Context, claim: jobs.Claim, words: str) -> None:
    with context.database.transaction() as tx:
        jobs.report(tx, claim, words)


def _report_epoch(context: Context, claim: jobs.Claim, record: EpochRecord, epochs: int) -> None:
    known = record.model_dump(exclude={"epoch", "seconds"})
    metrics = {name: round(float(value), 6) for name, value in known.items() if value is not None}
    with context.database.transaction() as tx:
        jobs.report(tx, claim, f"epoch {record.epoch} of {epochs}", epoch=record.epoch, epochs=epochs, metrics=metrics)


def _save(context: Context, claim: jobs.Claim, material: Material, repaired: Repaired) -> BundleInfo:
    """Each attempt has its own folder; what an attempt that was killed has left is never served."""
    name = f"{_prefix(claim)}{natural_id(claim.owner, str(claim.attempt))[:8]}"
    training = {
        "parent": material.champion.info.sha256,
        "remedy": str(claim.remedy),
        "run": claim.job_id,
        "data_sha256": material.data_sha256,
        "options": material.options.model_dump(),
        "best_epoch": repaired.best_epoch,
        "choices": repaired.record,
        "history": [record.model_dump(exclude={"seconds"}) for record in repaired.history],
    }
    if (rate := options.first_body_rate(material.champion.training)) is not None:
        training[options.BODY_RATE] = rate
    folder = context.settings.models_dir / claim.model / name
    return save_bundle(folder, repaired.spec, repaired.module, training, now=context.clock.now())
