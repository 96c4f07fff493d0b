"""One run of a repair on its material: fine-tune the champion, score both versions, judge.

The only effects before the verdict are checkpoints, a bundle nobody knows and progress; a second attempt takes up the first.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.bundle import BundleInfo, LoadedModel, load_bundle, save_bundle
from models.data import LabelledStudy, TensorSet, split_by_patient
from models.finetuning import FineTuned, finetune
from models.predictor import Predictor
from models.scoring import ScoredCase, score
from models.spec import SelectionRule
from models.training import EpochRecord
from services.remediation import data, jobs, options
from services.remediation.gate import Judgement, PairedCase, Rules, judge
from services.remediation.ids import natural_id
from services.remediation.material import Material
from services.runtime.errors import InvalidInput
from services.runtime.service import Context

TRAIN, VALID, TEST = "train", "valid", "test"
VALID_SHARE = 0.2
TIMED = 16
REPEATS = 9


@dataclass(frozen=True)
class Outcome:
    """A judged challenger, saved as a bundle and not yet entered anywhere."""

    bundle: BundleInfo
    judgement: Judgement
    gate_cases: Sequence[ScoredCase]
    tuned: FineTuned


def execute(context: Context, claim: jobs.Claim, material: Material, keeper: jobs.LeaseKeeper) -> Outcome:
    """Fine-tune, save, score, judge. Raises JobStopped, OrderWithdrawn, ModelError."""
    tuned = _tune(context, claim, material, keeper)
    keeper.check()
    bundle = _save(context, claim, material, tuned)
    challenger = load_bundle(bundle.folder)
    gate, gate_cases, ratio = _compare(context, material, challenger, material.gate, material.rule, keeper)
    baseline, _, _ = _compare(context, material, challenger, data.split_of(material.old, TEST), None, keeper)
    judgement = judge(gate, baseline, material.champion.spec.classes, rules_of(context, material), ratio)
    return Outcome(bundle, judgement, gate_cases, tuned)


def rules_of(context: Context, material: Material) -> Rules:
    """The gate's criteria as the settings state them."""
    limits = context.settings.remediation
    draws = context.settings.evaluation.bootstrap_draws
    seed = material.options.seed
    return Rules(limits.gate_alpha, limits.gate_margin, limits.min_gate_cases, draws, seed, looks=material.looks)


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


def _tune(context: Context, claim: jobs.Claim, material: Material, keeper: jobs.LeaseKeeper) -> FineTuned:
    spec, chosen = material.champion.spec, material.options
    new = data.load(material.tune, spec, material.rule, keeper.check)
    train_part, valid_part = split_by_patient(new.patients, new.labels, (1 - VALID_SHARE, VALID_SHARE), chosen.seed)
    if not train_part or not valid_part:
        raise InvalidInput("the cases to learn from come from too few patients to set some aside for validation")
    most = context.settings.remediation.max_cases
    rehearsal = data.load(data.bounded(data.split_of(material.old, TRAIN), most, chosen.seed), spec, None, keeper.check)
    # As many old as new validation cases: the chosen epoch shall serve both.
    old_valid = data.bounded(data.split_of(material.old, VALID), len(valid_part), chosen.seed)
    valid = data.combine(new.subset(valid_part), data.load(old_valid, spec, None, keeper.check))
    return finetune(
        material.champion,
        new.subset(train_part),
        valid,
        options.training_settings(chosen, context.settings.inference.device),
        options.strategy_of(claim.remedy),
        rehearsal=rehearsal if len(rehearsal) else None,
        on_epoch=lambda record: _report_epoch(context, claim, record, chosen.epochs),
        checkpoint_dir=checkpoints(context, claim),
        should_stop=keeper.must_end,
    )


def _report_epoch(context: Context, claim: jobs.Claim, record: EpochRecord, epochs: int) -> None:
    known = record.model_dump(exclude={"epoch", "seconds"})
    metrics = {name: round(float(value), 6) for name, value in known.items() if value is not None}
    with context.database.transaction() as tx:
        jobs.report(tx, claim, f"epoch {record.epoch} of {epochs}", epoch=record.epoch, epochs=epochs, metrics=metrics)


def _save(context: Context, claim: jobs.Claim, material: Material, tuned: FineTuned) -> BundleInfo:
    """Each attempt has its own folder; what an attempt that was killed has left is never served."""
    name = f"{_prefix(claim)}{natural_id(claim.owner, str(claim.attempt))[:8]}"
    training = {
        "parent": material.champion.info.sha256,
        "remedy": str(claim.remedy),
        "run": claim.job_id,
        "data_sha256": material.data_sha256,
        "options": material.options.model_dump(),
        "best_epoch": tuned.result.best_epoch,
        "history": [record.model_dump(exclude={"seconds"}) for record in tuned.result.history],
    }
    folder = context.settings.models_dir / claim.model / name
    return save_bundle(folder, material.champion.spec, tuned.module, training, now=context.clock.now())


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
    paired = [
        PairedCase(first.case_key, first.patient, first.truth, first.probabilities, second.probabilities)
        for first, second in zip(before, after, strict=True)
    ]
    return paired, after, latency_ratio(old, new, tensors)


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
