"""One run of a repair on its material: fine-tune the champion, score both versions, judge.

The only effects before the verdict are checkpoints, a bundle nobody knows and progress; a second attempt takes up the first.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from models.bundle import BundleInfo, LoadedModel, load_bundle, save_bundle
from models.data import LabelledStudy, TensorSet, split_by_patient
from models.predictor import Predictor
from models.remedies import REFERENCE, STRATEGIES, Hooks, RepairData, Repaired, repair
from models.scoring import ScoredCase, score
from models.spec import SelectionRule
from models.training_settings import EpochRecord
from schemas.vocabulary import Remedy
from services.remediation import data, jobs, options
from services.remediation.gate import Endpoint, Judgement, PairedCase, Rules, judge
from services.remediation.ids import natural_id
from services.remediation.material import Material
from services.remediation.promise import SCREENED, unpromising
from services.runtime.change_plans import citation, latency_limit, tightened
from services.runtime.errors import InvalidInput
from services.runtime.service import Context

TRAIN, VALID, TEST = "train", "valid", "test"
VALID_SHARE = 0.2
TIMED = 16
OLD_VALID = 200
"""Held-out old cases that a repair's choices are made on."""
CHOICE = 2
"""Old cases that are read for each one that may be rehearsed."""
REPEATS = 9


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
    repaired = _repair(context, claim, material, keeper)
    keeper.check()
    bundle = _save(context, claim, material, repaired)
    challenger = load_bundle(bundle.folder)
    rules = rules_of(context, material, claim.remedy)
    refused = _screened(context, claim, material, challenger, repaired, rules, keeper)
    clause = material.change_plan.plan.clause_for(claim.remedy) if material.change_plan else None
    plan = citation(material.change_plan, clause)
    if refused is not None:
        return Outcome(bundle, cited(refused, plan), (), repaired, judged=False)
    gate, gate_cases, ratio = _compare(context, material, challenger, material.gate, material.rule, keeper)
    baseline, _, _ = _compare(context, material, challenger, data.split_of(material.old, TEST), None, keeper)
    judgement = judge(gate, baseline, material.champion.spec.classes, rules, ratio)
    return Outcome(bundle, cited(judgement, plan), gate_cases, repaired)


def _screened(
    context: Context,
    claim: jobs.Claim,
    material: Material,
    challenger: LoadedModel,
    repaired: Repaired,
    rules: Rules,
    keeper: jobs.LeaseKeeper,
) -> Judgement | None:
    """A rejection without the gate, for a cheap rung that gives back too little; None for whatever shall be judged."""
    if claim.remedy not in SCREENED or repaired.unchanged:
        return None
    taught, _, _ = _compare(context, material, challenger, material.tune, material.rule, keeper)
    usual = repaired.record.get(REFERENCE, {})
    return unpromising(taught, usual, len(material.gate), material.champion.spec.classes, rules)


def cited(judgement: Judgement, plan: str) -> Judgement:
    """The verdict with the change control plan that covers the change among its reasons, where the model has one."""
    return replace(judgement, reasons=(f"Covered by the {plan}.", *judgement.reasons)) if plan else judgement


def rules_of(context: Context, material: Material, remedy: Remedy) -> Rules:
    """The gate's criteria by the settings; a recalibration has to show better probabilities, all else better decisions."""
    limits = tightened(context.settings.remediation, material.change_plan)
    draws = context.settings.evaluation.bootstrap_draws
    seed = material.options.seed
    endpoint: Endpoint = "probabilities" if remedy == Remedy.RECALIBRATE else "decisions"
    return Rules(
        limits.gate_alpha,
        limits.gate_margin,
        limits.min_gate_cases,
        draws,
        seed,
        latency_limit(material.change_plan),
        looks=material.looks,
        endpoint=endpoint,
    )


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


def _repair(context: Context, claim: jobs.Claim, material: Material, keeper: jobs.LeaseKeeper) -> Repaired:
    chosen, limits = material.options, context.settings.remediation
    hooks = Hooks(
        on_epoch=lambda record: _report_epoch(context, claim, record, chosen.epochs),
        say=lambda words: _report_step(context, claim, words),
        check=keeper.check,
        should_stop=keeper.must_end,
        checkpoint_dir=checkpoints(context, claim),
    )
    ties = options.repair_settings(chosen, context.settings.inference.device, limits.max_cases)
    return repair(claim.remedy, material.champion, _sets(claim, material, limits.max_cases, keeper), ties, hooks)


def _sets(claim: jobs.Claim, material: Material, most: int, keeper: jobs.LeaseKeeper) -> RepairData:
    """The studies that the remedy uses, as tensors; what it does not use is not read."""
    spec, seed = material.champion.spec, material.options.seed
    new = data.load(material.tune, spec, material.rule, keeper.check)
    train_part, valid_part = split_by_patient(new.patients, new.labels, (1 - VALID_SHARE, VALID_SHARE), seed)
    if not train_part or not valid_part:
        raise InvalidInput("the cases to learn from come from too few patients to set some aside for validation")
    rehearsed = data.split_of(material.old, TRAIN) if claim.remedy in STRATEGIES else []
    held_out = data.bounded(data.split_of(material.old, VALID), max(OLD_VALID, len(valid_part)), seed)
    return RepairData(
        new=new.subset(train_part),
        new_valid=new.subset(valid_part),
        old=data.load(data.bounded(rehearsed, CHOICE * most, seed), spec, None, keeper.check),
        old_valid=data.load(held_out, spec, None, keeper.check),
        recent=data.load(material.recent, spec, material.rule, keeper.check),
    )


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
    folder = context.settings.models_dir / claim.model / name
    return save_bundle(folder, repaired.spec, repaired.module, training, now=context.clock.now())


def _compare(
    context: Context,
    material: Material,
    challenger: LoadedModel,
    studies: Sequence[LabelledStudy],
    rule: SelectionRule | None,
    keeper: jobs.LeaseKeeper,
) -> tuple[list[PairedCase], list[ScoredCase], float]:
    """The same studies scored by both versions, and how many times as long the challenger takes."""
    settings = context.settings.inference
    tensors = data.load(studies, material.champion.spec, rule, keeper.check)
    old, new = (
        Predictor(each, settings.device, settings.precision, settings.batch_size) for each in (material.champion, challenger)
    )
    before, after = score(old, tensors), score(new, tensors)
    paired = [paired_case(first, second) for first, second in zip(before, after, strict=True)]
    return paired, after, latency_ratio(old, new, tensors)


def paired_case(champion: ScoredCase, challenger: ScoredCase) -> PairedCase:
    """One study as both versions scored it."""
    facets = champion.seen.facets if champion.seen is not None else {}
    return PairedCase(champion.case_key, champion.patient, champion.truth, champion.probabilities, challenger.probabilities, facets)


def latency_ratio(old: Predictor, new: Predictor, tensors: TensorSet, prepared_for_new: TensorSet | None = None) -> float:
    """Shortest time of the challenger over that of the champion on the same studies, measured in turns.

    The shortest, because whatever else the machine does only ever adds to a time. `prepared_for_new` are the same studies
    where the challenger prepares them in its own way.
    """
    samples = (tensors.studies[:TIMED], (prepared_for_new or tensors).studies[:TIMED])
    times: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(REPEATS):
        for side, predictor in enumerate((old, new)):
            started = time.perf_counter()
            predictor.predict(samples[side])
            if predictor.device.type == "cuda":
                torch.cuda.synchronize(predictor.device)
            times[side].append(time.perf_counter() - started)
    return min(times[1]) / max(min(times[0]), 1e-9)
