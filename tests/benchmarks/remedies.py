"""Recovery of decayed classifiers: each rung, the ladder and the published recipe on the same shifts, with what is forgotten.

    python tests/benchmarks/remedies.py [--quick | --full] [--data FOLDER] [--sets A,B] [--networks A,B] [--shifts A:1,B:2]
        [--rungs A,B] [--seed N] [--size N] [--images N] [--reserve N] [--epochs N] [--tune-epochs N]
        [--batch N] [--rate N] [--resume FILE] [--json FILE]

Per set and network: 60 / 20 / 20 as published. The champion learns the development part's training share; its test share is
the old set, with 400 further images where the set has them. A shift of known kind changes the other two parts alike: the
fine-tuning part teaches (tune), the inference part judges (gate) and teaches nobody. The ceiling is the same network trained
with the fine-tuning part from the start. Figures are mean recall of the classes in percent with bootstrap intervals, on the
gate's cases and on those that it may get labels of: with 300 cases a distance would have a standard error of two points. What is
forgotten is measured on the old set and the unchanged images of the inference part, each class paired with the champion. The
ladder climbs as the agents order it after the true diagnosis, with the deployed screening and gate, which gets the labels it
asks for as long as the set has images; its cost is that of all rungs it tried, in the networks' operations (forward and
backward), and it and always-full are compared over all declines: shifts that cost three points of mean recall.
Networks are trained from random weights: no ImageNet weights can be had here. The default is a subset for ten minutes on two
free cores (48 pixels, 1500 images a set, small network); `--full` takes all networks, three strengths and 112 pixels, and
wants a GPU. `--resume` keeps each finished piece (a set, a network, a shift) in a file and does not compute it again.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_report import Target, arguments, at_most, finish
from remedy_bench import images, ways
from remedy_bench.kept import Kept, Rows
from remedy_bench.ways import Effort, Repair

from schemas.vocabulary import Diagnosis, Remedy
from services.evaluation.reclaim_rule import apply_rule

DECLINE = 0.03
"""Fall of mean recall from which a repair is ordered."""
SURE = 1.645
"""Standard errors of a one-sided bound of 95 %."""
RUNGS = (
    Remedy.RETHRESHOLD,
    Remedy.RECALIBRATE,
    Remedy.HARMONISE,
    Remedy.ADAPT_STATISTICS,
    Remedy.HEAD_ONLY,
    Remedy.PARTIAL,
    Remedy.PARAMETER_EFFICIENT,
    Remedy.GRADUAL,
    Remedy.FULL,
)
ALL = ("inception_v3", "resnet50", "efficientnet_v2_s", "vgg16")


BASELINE = 400
"""Test cases beside the protocol's where the set has more images than are used: its 12 % of a small subset are too few of a class
for any gate to say what the class has lost."""
RESERVE = 2000
"""Most cases that get labels only when the gate asks for them."""

SIZES = {
    "seed": "of training and of what is drawn",
    "size": "pixels of a side",
    "images": "most of a set that are dealt into 60 / 20 / 20",
    "reserve": "most further cases that the gate may get labels of, and, up to 400, that are old test cases",
    "epochs": "of a training from the start",
    "tune_epochs": "of a repair",
    "batch": "of a training from the start",
    "rate": "learning rate of a training from the start; the body's in a repair is half of it",
}
"""Options that are numbers."""
EFFORT = ("seed", "epochs", "tune_epochs", "batch", "rate")
"""Those of them that say how long and how fast is trained."""


@dataclass(frozen=True)
class Parts:
    """New cases: those that teach, those that judge, and those that may be labelled to judge too."""

    tune: images.Pool
    gate: images.Pool
    reserve: images.Pool

    @cached_property
    def unseen(self) -> images.Pool:
        """All that teach nobody: what comes back of the recall is measured on them."""
        return self.gate.joined(self.reserve)

    def changed(self, shift: str, strength: int) -> "Parts":
        """The same cases after a change of known kind."""
        parts = (self.tune, self.gate, self.reserve)
        return Parts(*(images.shifted(part, shift, strength, number) for number, part in enumerate(parts)))


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    sets: tuple[str, ...]
    networks: tuple[str, ...]
    shifts: tuple[tuple[str, int], ...]
    size: int
    most: int
    effort: Effort
    rungs: tuple[Remedy, ...] = RUNGS
    real: bool = True
    reserve: int = RESERVE


QUICK = Plan(
    ("cxr_pneumonia_kermany",), ("small",), (("gamma", 2),), 48, 700, Effort(5, 2),
    (Remedy.RETHRESHOLD, Remedy.HARMONISE, Remedy.ADAPT_STATISTICS, Remedy.PARTIAL, Remedy.PARAMETER_EFFICIENT, Remedy.FULL),
    real=False,
)  # fmt: skip
USUAL = Plan(tuple(images.SETS), ("small",), (("gamma", 1), ("noise", 0), ("crop", 0), ("prevalence", 1)), 48, 1500, Effort(12, 8))
FULL = Plan(
    tuple(images.SETS), ALL, tuple((name, strength) for name in (*images.CHANGES, *images.MIXES) for strength in range(3)),
    112, 10_000, Effort(20, 10),
)  # fmt: skip


def false_alarms(model: Any, sets: images.Protocol, seed: int) -> dict[str, float]:
    """(a) Without a shift: how often the 5 % rule fires when test and inference cases are dealt anew from one pool."""
    rows = [ways.probabilities(model, pool).argmax(1) for pool in (sets.test, sets.inference)]
    said, truth = np.concatenate(rows), np.concatenate([sets.test.labels, sets.inference.labels])
    classes, random = model.spec.classes, np.random.default_rng(seed)
    fired = 0
    for _ in range(400):
        order = random.permutation(len(truth))
        parts = np.split(order, [len(sets.test.labels)])
        tables = [_confusion(truth[part], said[part], len(classes)) for part in parts]
        fired += apply_rule(tables[0], tables[1], classes).declined
    return {"published 5 % rule": fired / 400, "cases": float(len(truth))}


def _confusion(truth: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(truth * classes + said, minlength=classes**2).reshape(classes, classes)


def repairs(plan: Plan, champion: Any, sets: images.Protocol, parts: Parts, diagnosis: Diagnosis) -> list[Repair]:
    """The peer, every rung, and the ladder over those rungs."""
    rungs = [ways.by_rung(remedy, champion, sets, parts.tune, plan.effort) for remedy in plan.rungs]
    recipe = ways.by_recipe(champion, parts.tune, plan.effort)
    ladder = ways.by_ladder(rungs, champion, parts.tune, parts.gate, parts.reserve, sets.test, diagnosis)
    return [recipe, *rungs, ladder]


def measured(
    plan: Plan, where: dict[str, str], champion: Any, sets: images.Protocol, usual: Parts, parts: Parts
) -> list[dict[str, Any]]:
    """One shift, from the `usual` cases to others: a row for each way."""
    torch.manual_seed(plan.effort.seed)
    ceiling = ways.champion_of(champion.spec, sets, plan.effort, parts.tune)
    gate, new, old = parts.gate, parts.unseen, images.old_cases(sets)
    top, before, degraded = ways.recall(ceiling, new), ways.recall(champion, usual.unseen), ways.recall(champion, new)
    declined = before[0] - degraded[0] >= DECLINE
    diagnosis = {"prevalence": Diagnosis.PREVALENCE, "label_noise": Diagnosis.CONCEPT}.get(
        where["shift"].split()[0], Diagnosis.COVARIATE
    )
    rows = []
    for made in repairs(plan, champion, sets, parts, diagnosis):
        after, lost = ways.recall(made.model, new), ways.forgotten(champion, made.model, old)
        worst = max(lost, key=lambda loss: loss.points)
        judgement = None if made.name == "ladder" else ways.judged(champion, made.model, gate, sets.test, 0)
        rows.append(
            where
            | {
                "way": made.name,
                "before": ways.points(before),
                "degraded": ways.points(degraded),
                "after": ways.points(after),
                "ceiling": ways.points(top),
                "below ceiling": round(100 * (top[0] - after[0]), 1),
                "old after": ways.points(ways.recall(made.model, old)),
                "worst old class lost": round(worst.points, 1),
                "old classes lost ± SE": ", ".join(f"{loss.points:.1f} ± {loss.error:.1f}" for loss in lost),
                "GFLOP": round(made.operations / 1e9, 1),
                "seconds": round(made.seconds, 1),
                "gate": "-" if judgement is None else str(judgement.verdict),
                "note": "; ".join(filter(None, [made.note, ways.objections(judgement) if judgement is not None else ""])),
                "declined": declined,
                "_lost": lost,
            }
        )
    return rows


def other_hospital(plan: Plan, data: Path, name: str, seed: int) -> Parts:
    """(c) Tune and gate parts of the other hospital's set."""
    pool, _ = images.load(data, images.REAL[name], plan.size, plan.most, seed)
    order = np.random.default_rng([seed, 9]).permutation(len(pool.labels))
    return Parts(*(pool.take(part) for part in np.split(order, [len(order) // 2, 4 * len(order) // 5])))


def one_model(plan: Plan, data: Path, name: str, network: str, kept: Kept) -> tuple[Rows, Rows]:
    """All shifts of one set and network, and the false alarms without one."""

    def piece(shift: str) -> str:
        return f"{name} {network} {shift}: {replace(plan, sets=(), networks=(), shifts=())}"

    real = ["other hospital"] if plan.real and name in images.REAL else []
    named = [*(f"{shift} {strength + 1}" for shift, strength in plan.shifts), *real]
    make = {} if all(kept.has(piece(each)) for each in ["none", *named]) else makers(plan, data, name, network)
    found = {each: kept.take(piece(each), make.get(each, list)) for each in [*named, "none"]}
    return [row for each in named for row in found[each]], found["none"]


def makers(plan: Plan, data: Path, name: str, network: str) -> dict[str, Callable[[], Rows]]:
    """What gives the rows of each shift, and of none, of one set and network; the champion is trained at once."""
    pool, classes = images.load(data, name, plan.size, plan.most, plan.effort.seed)
    baseline = min(BASELINE, plan.reserve)
    further, _ = images.load(data, name, plan.size, baseline + plan.reserve, plan.effort.seed, start=plan.most)
    published, places = images.split(pool, plan.effort.seed), np.arange(len(further.labels))
    sets, reserve = replace(published, test=published.test.joined(further.take(places[:baseline]))), further.take(places[baseline:])
    champion = ways.champion_of(images.spec_of(name, classes, network, plan.size), sets, plan.effort)
    usual, where = Parts(sets.finetune, sets.inference, reserve), {"set": name, "network": network}
    others: dict[str, Callable[[], Parts]] = {
        f"{shift} {strength + 1}": partial(usual.changed, shift, strength) for shift, strength in plan.shifts
    }
    others["other hospital"] = partial(other_hospital, plan, data, name, 0)

    def rows_of(shift: str) -> Rows:
        found = measured(plan, where | {"shift": shift}, champion, sets, usual, others[shift]())
        tell(found)
        return found

    quiet = {"none": lambda: [where | {"shift": "none"} | false_alarms(champion, published, 0)]}
    return {shift: partial(rows_of, shift) for shift in others} | quiet


def tell(rows: list[dict[str, Any]]) -> None:
    """What is found so far, in few words: a run takes long."""
    for row in rows:
        words = (
            "set",
            "network",
            "shift",
            "way",
            "degraded",
            "after",
            "below ceiling",
            "worst old class lost",
            "GFLOP",
            "gate",
            "note",
        )
        print(" | ".join(str(row[word]) for word in words), file=sys.stderr, flush=True)


def targets_of(rows: list[dict[str, Any]]) -> list[Target]:
    """The issue's bars on the ladder's rows, over all declines."""
    declines = [row for row in rows if row["declined"]]
    ladder = [row for row in declines if row["way"] == "ladder"]
    covariate = [row for row in ladder if row["shift"].split()[0] in images.CHANGES]
    below = max((row["below ceiling"] for row in covariate), default=None)
    shown = sum(loss.points - SURE * loss.error > 1.0 for row in ladder for loss in row["_lost"])
    return [
        at_most("ladder: largest distance below the ceiling, covariate shifts (points)", below, 1.0),
        at_most(
            "ladder: largest loss of an old class (points)", max((row["worst old class lost"] for row in ladder), default=None), 1.0
        ),
        at_most("ladder: classes shown to lose more than a point (one-sided 95 %)", float(shown), 0.0),
        at_most("ladder: operations over always full", _over_full(ladder, declines), 0.25),
    ]


def _over_full(own: list[dict[str, Any]], declines: list[dict[str, Any]]) -> float | None:
    """Operations of a way over those of always training everything; None where that was not run."""
    full = sum(row["GFLOP"] for row in declines if row["way"] == "full")
    return round(sum(row["GFLOP"] for row in own) / full, 3) if full else None


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each way over all declines: what matters in one line."""
    found = []
    for name in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == name and row["declined"]]
        lost = [loss.points for row in own for loss in row["_lost"]]
        found.append(
            {
                "set": "all declines",
                "network": "-",
                "shift": f"{len(own)}",
                "way": name,
                "below ceiling": round(float(np.mean([row["below ceiling"] for row in own])), 1) if own else None,
                "worst old class lost": round(max(lost), 1) if lost else None,
                "mean loss of an old class": round(float(np.mean(lost)), 1) if lost else None,
                "GFLOP": round(sum(row["GFLOP"] for row in own), 1),
                "over always full": _over_full(own, [row for row in rows if row["declined"]]),
            }
        )
    return found


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(data=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--full", action="store_true", help="all networks, shifts and strengths; wants a GPU")
    parser.add_argument("--sets", help="of the material, separated by commas")
    parser.add_argument("--networks", help="separated by commas")
    parser.add_argument("--shifts", help="such as gamma:2,prevalence:1,other: strengths from 1 to 3, the other hospital")
    parser.add_argument("--rungs", help="such as harmonise,full: the ladder climbs these only")
    for name, words in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float if name == "rate" else int, help=words)
    parser.add_argument("--resume", type=Path, help="keep finished pieces in this file and do not compute them again")
    chosen = parser.parse_args()
    plan = planned(chosen)
    torch.manual_seed(0)
    started, kept = time.perf_counter(), Kept(chosen.resume)
    rows, quiet = list[dict[str, Any]](), list[dict[str, Any]]()
    for name in plan.sets:
        for network in plan.networks:
            found, alarms = one_model(plan, chosen.data, name, network, kept)
            rows, quiet = rows + found, quiet + alarms
    wall = time.perf_counter() - started
    note = f"{plan.size} px, at most {plan.most} images a set, {plan.effort.epochs} epochs from random weights, {wall:.0f} s."
    shown = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
    finish("remedies", [*shown, *means(rows), *quiet], targets_of(rows), chosen.json, note)


def planned(chosen: argparse.Namespace) -> Plan:
    """What the options say."""
    plan = QUICK if chosen.quick else FULL if chosen.full else USUAL
    if chosen.shifts:
        named = chosen.shifts.split(",")
        pairs = (each.split(":") for each in named if each != "other")
        plan = replace(plan, shifts=tuple((name, int(strength) - 1) for name, strength in pairs), real="other" in named)
    if chosen.rungs:
        plan = replace(plan, rungs=tuple(Remedy(name) for name in chosen.rungs.split(",")))
    lists = {name: tuple(getattr(chosen, name).split(",")) for name in ("sets", "networks") if getattr(chosen, name)}
    given = {name: getattr(chosen, name) for name in SIZES if getattr(chosen, name) is not None}
    effort = replace(plan.effort, **{name: given.pop(name) for name in EFFORT if name in given})
    if "images" in given:
        given["most"] = given.pop("images")
    return replace(plan, effort=effort, **lists, **given)


if __name__ == "__main__":
    main()
