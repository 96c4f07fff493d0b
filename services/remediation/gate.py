"""The gate: may the challenger serve? Pure statistics over cases that neither raised the alarm nor trained the repair.

Better on the gate's cases: exact one-sided McNemar test (McNemar 1947), on patients: each patient counts once, for the
version that has more of that patient's studies right. A repair of the probabilities, which need not change any decision, is
judged by their Brier score instead. Not worse on the gate's cases nor on the baseline: upper confidence
bound of the loss of recall within the margin, class by class. Not worse calibrated, not slower. Every number goes into
the verdict, and so does the name of every class that could not be checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from schemas.vocabulary import Verdict
from services.remediation import betting, groups, resampling
from services.remediation.discordance import discordant
from services.remediation.introductions import introductions
from services.remediation.losses import lost
from services.remediation.resampling import Floats
from services.remediation.shortage import Loss, cases_needed, cases_that_bound, within_reach

Endpoint: TypeAlias = Literal["decisions", "probabilities"]


@dataclass(frozen=True, slots=True)
class PairedCase:
    """One labelled study scored by both versions; `facets` say to which subgroups it belongs."""

    case_key: str
    patient: str
    truth: str
    champion: Mapping[str, float]
    challenger: Mapping[str, float]
    facets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """Acceptance criteria, fixed before the run.

    `looks` counts the earlier judgements on cases of the same patients. `alpha` is what all of them may spend together on
    the test for better. `endpoint` says what has to be better: the decisions, or the probabilities. `min_class_cases` are
    the gate cases that it takes of a class which only the challenger knows.
    """

    alpha: float = 0.05
    margin: float = 0.05
    min_cases: int = 30
    draws: int = 1000
    seed: int = 0
    max_latency_ratio: float = 2.0
    looks: int = 0
    endpoint: Endpoint = "decisions"
    min_class_cases: int = 20

    @property
    def level(self) -> float:
        """Level of this judgement's test for better: alpha / 2, alpha / 4, ..., which sum to alpha (Bonferroni)."""
        return float(self.alpha / 2 ** (self.looks + 1))

    @property
    def bound_level(self) -> float:
        """Level of this judgement's bounds on what is lost: alpha, alpha / 2, ..., which sum to at most twice alpha."""
        return float(self.alpha / 2**self.looks)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict with its reasons in plain words, every number, and how many gate cases it would take (0: enough)."""

    verdict: Verdict
    reasons: tuple[str, ...]
    numbers: dict[str, float | None]
    needed_cases: int = 0


@dataclass
class _Findings:
    """What the single tests say; `objections` alone reject. `open`: what `needed` gate cases are likely to settle."""

    numbers: dict[str, float | None] = field(default_factory=dict)
    support: list[str] = field(default_factory=list)
    objections: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    needed: int = 0


class _Arrays:
    """Cases as arrays: truth [n], right answers [n] and confidences [n] of either version."""

    def __init__(self, cases: Sequence[PairedCase], classes: Sequence[str], rules: Rules) -> None:
        self.patients = [case.patient for case in cases]
        self.facets = [case.facets for case in cases]
        self.truth: npt.NDArray[np.int64] = np.array([classes.index(case.truth) for case in cases], dtype=np.int64)
        self.present = sorted(set(self.truth.tolist()))
        self.called, self.old_confidence = _answers([case.champion for case in cases], classes)
        calls, self.new_confidence = _answers([case.challenger for case in cases], classes)
        self.old, self.new = ((each == self.truth).astype(np.float64) for each in (self.called, calls))
        self.brier_gain = _brier([case.champion for case in cases], classes, self.truth) - _brier(
            [case.challenger for case in cases], classes, self.truth
        )
        self.draws = resampling.counts(self.patients, rules.draws, rules.seed)
        self.once = np.ones((1, len(cases)))


def _answers(rows: Sequence[Mapping[str, float]], classes: Sequence[str]) -> tuple[npt.NDArray[np.int64], Floats]:
    """The class that is called in each case, and its probability."""
    scores = np.array([[row[name] for name in classes] for row in rows], dtype=np.float64)
    return scores.argmax(axis=1), scores.max(axis=1)


def _brier(rows: Sequence[Mapping[str, float]], classes: Sequence[str], truth: npt.NDArray[np.int64]) -> Floats:
    """Half of Brier's score of each case, in [0, 1]."""
    scores = np.array([[row[name] for name in classes] for row in rows], dtype=np.float64)
    return np.asarray(np.square(scores - np.eye(len(classes))[truth]).sum(axis=1) / 2)


def judge(
    gate: Sequence[PairedCase],
    baseline: Sequence[PairedCase],
    classes: Sequence[str],
    rules: Rules,
    latency_ratio: float | None = None,
    added: Sequence[str] = (),
) -> Judgement:
    """Judge a challenger on `gate` (new) and `baseline` (old) cases. Raises ValueError without any baseline case.

    `classes` are those of the champion, `added` those that only the challenger knows (decision 0023). Cases of an added class
    count for what is better and are judged by themselves; calibration, the known classes and subgroups are compared without them.
    """
    if not baseline:
        msg = "without baseline cases nobody can say what the challenger has forgotten"
        raise ValueError(msg)
    common = [case for case in gate if case.truth not in added]
    if lacking := _lacking(gate, len(common), rules, added):
        return lacking
    names, found = (*classes, *added), _Findings()
    new, old = _Arrays(common, names, rules), _Arrays(baseline, names, rules)
    every = _Arrays(gate, names, rules) if added else new
    better, needed = (_gain if rules.endpoint == "decisions" else _sounder)(every, rules, found)
    _compare(every, found)
    _calibration(new, rules, found)
    _spared(new, old, classes, rules, found)
    _memory(old, classes, rules, found)
    _introduced(every, names, added, rules, found)
    _latency(latency_ratio, rules, found)
    return _verdict(found, better=better, needed=needed, cases=len(gate))


def _lacking(gate: Sequence[PairedCase], common: int, rules: Rules, added: Sequence[str]) -> Judgement | None:
    """What to ask for where there are too few cases to judge at all; None where there are enough."""
    if common < rules.min_cases:
        reason = f"The gate has {common} labelled cases; it judges from {rules.min_cases} on."
        return _too_few(len(gate), rules.min_cases + len(gate) - common, reason)
    counts = {name: sum(case.truth == name for case in gate) for name in added}
    few = {name: count for name, count in counts.items() if count < rules.min_class_cases}
    if not few:
        return None
    seen = ", ".join(f"{name} ({count})" for name, count in few.items())
    reason = f"The gate has too few labelled cases of new classes: {seen}; it judges from {rules.min_class_cases} of each on."
    return _too_few(len(gate), len(gate) + sum(rules.min_class_cases - count for count in few.values()), reason)


def _too_few(cases: int, needed: int, reason: str) -> Judgement:
    numbers: dict[str, float | None] = {"gate_cases": float(cases), "gate_cases_needed": float(needed)}
    return Judgement(Verdict.NEED_LABELS, (reason,), numbers, needed)


def _verdict(found: _Findings, *, better: bool, needed: int, cases: int) -> Judgement:
    reasons = (*found.support, *found.open, *found.objections)
    hopeless = bool(found.objections) or not (better or within_reach(needed, cases))
    wanted = max(found.needed, 0 if better else needed)
    numbers = found.numbers | {"gate_cases_needed": float(wanted) if wanted else None}
    if hopeless:
        return Judgement(Verdict.REJECT, reasons, numbers)
    if not wanted:
        return Judgement(Verdict.PROMOTE, reasons, numbers)
    what = "What is open would be settled" if found.open else "The gain that is seen would be shown"
    ask = f"{what} with about {wanted} gate cases; there are {cases}."
    return Judgement(Verdict.NEED_LABELS, (*reasons, ask), numbers, wanted)


def _gain(cases: _Arrays, rules: Rules, found: _Findings) -> tuple[bool, int]:
    """Whether the challenger is shown to be better, and how many cases would show it where it is not (0: no gain is seen)."""
    wins, losses = discordant(cases.patients, (cases.new - cases.old).tolist())
    p_value = float(binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue) if wins + losses else 1.0
    found.numbers |= {
        "gate_cases": float(len(cases.truth)),
        "gate_patients": float(len(set(cases.patients))),
        "mcnemar_wins": float(wins),
        "mcnemar_losses": float(losses),
        "mcnemar_p": p_value,
        "gate_judgement": float(rules.looks + 1),
        "gate_level": rules.level,
    }
    counted = f"of {wins + losses} patients on whom the versions differ, {wins} are better read by the challenger"
    limit = f"p = {p_value:.3g}; judgement {rules.looks + 1} on these patients, so at most {rules.level:.3g}"
    if p_value <= rules.level:
        found.support.append(f"Better on the gate's cases: {counted} (exact McNemar test, {limit}).")
        return True, 0
    found.support.append(f"Not shown to be better: {counted} (exact McNemar test, {limit}).")
    # More labels are followed by one more judgement on these patients, at half this level.
    return False, cases_needed(wins, losses, len(cases.truth), rules.level / 2)


def _sounder(cases: _Arrays, rules: Rules, found: _Findings) -> tuple[bool, int]:
    """The same for the probabilities: mean gain in Brier's score, each patient once, by betting."""
    sums: dict[str, list[float]] = {}
    for patient, gain in zip(cases.patients, cases.brier_gain.tolist(), strict=True):
        sums.setdefault(patient, []).append(gain)
    gains = [sum(each) / len(each) for each in sums.values()]
    evidence = betting.evidence_of_gain(gains, rules.seed)
    p_value = min(1.0, 1 / evidence) if evidence > 0 else 1.0
    found.numbers |= {
        "gate_cases": float(len(cases.truth)),
        "gate_patients": float(len(gains)),
        "brier_gain": float(np.mean(gains)),
        "brier_evidence": evidence,
        "brier_p": p_value,
        "gate_judgement": float(rules.looks + 1),
        "gate_level": rules.level,
    }
    seen = f"mean gain in Brier's score {np.mean(gains):.4f} over {len(gains)} patients"
    limit = f"test by betting, p = {p_value:.3g}; judgement {rules.looks + 1} on these patients, so at most {rules.level:.3g}"
    if p_value <= rules.level:
        found.support.append(f"More trustworthy probabilities on the gate's cases: {seen} ({limit}).")
        return True, 0
    found.support.append(f"Not shown to give more trustworthy probabilities: {seen} ({limit}).")
    return False, betting.cases_for(evidence, len(cases.truth), rules.level / 2)


def _compare(cases: _Arrays, found: _Findings) -> None:
    """Accuracy, macro recall and per-class recall of both, and the intervals of the differences."""
    change, every = cases.new - cases.old, len(cases.truth)
    gains = {
        "accuracy": resampling.means(change, cases.draws),
        "macro_recall": resampling.recalls(cases.new, cases.truth, cases.present, cases.draws)
        - resampling.recalls(cases.old, cases.truth, cases.present, cases.draws),
    }
    for side, right in (("champion", cases.old), ("challenger", cases.new)):
        found.numbers[f"accuracy:{side}"] = float(right.sum()) / every
        found.numbers[f"macro_recall:{side}"] = float(resampling.recalls(right, cases.truth, cases.present, cases.once)[0])
    for name, draws in gains.items():
        low, high = resampling.interval(draws, 0.05)
        found.numbers |= {f"{name}_gain_low": low, f"{name}_gain_high": high}
    before, after = found.numbers["macro_recall:champion"] or 0.0, found.numbers["macro_recall:challenger"] or 0.0
    if after < before:
        found.objections.append(f"The mean recall over the classes falls from {before:.1%} to {after:.1%} on the gate's cases.")


def _calibration(cases: _Arrays, rules: Rules, found: _Findings) -> None:
    sides = (("champion", cases.old_confidence, cases.old), ("challenger", cases.new_confidence, cases.new))
    drawn = {}
    for side, confidence, right in sides:
        drawn[side] = resampling.calibration_errors(confidence, right, cases.draws)
        found.numbers[f"calibration_error:{side}"] = float(resampling.calibration_errors(confidence, right, cases.once)[0])
        low, high = resampling.interval(drawn[side], 0.05)
        found.numbers |= {f"calibration_error_low_{side}": low, f"calibration_error_high_{side}": high}
    worse = resampling.interval(drawn["challenger"] - drawn["champion"], 2 * rules.bound_level)[0]
    found.numbers["calibration_error_loss_low"] = worse
    if worse > rules.margin:
        found.objections.append(f"Its probabilities are less trustworthy: calibration error higher by at least {worse:.3f}.")


def _spared(cases: _Arrays, old: _Arrays, classes: Sequence[str], rules: Rules, found: _Findings) -> None:
    """No class pays on the gate's cases for the gain of the others.

    The recall that a class must keep is the champion's on these cases, or that on its baseline where it is lower: a champion
    that calls nearly everything one class finds all of it, which no repair could keep.
    """
    small, fine = _class_losses(cases, classes, rules, found, "gate", old)
    if fine:
        found.support.append(f"No class that the gate's cases show loses more recall than the tolerated {rules.margin:.1%}.")
    _unchecked(cases, classes, rules, found, "gate", small)
    _subgroups(cases, rules, found, "gate")


def _introduced(cases: _Arrays, names: Sequence[str], added: Sequence[str], rules: Rules, found: _Findings) -> None:
    """Classes that only the challenger knows have to be read better than by guessing."""
    truths = [names[label] for label in cases.truth.tolist()]
    for each in introductions(truths, cases.new.tolist(), cases.patients, added, len(names)):
        found.numbers |= {f"added_cases:{each.name}": float(each.cases), f"added_recall:{each.name}": each.recall}
        found.numbers[f"added_p:{each.name}"] = each.p_value
        if each.p_value <= rules.bound_level:
            found.support.append(f"The new class {each.name} is read: {each.words}.")
        else:
            found.objections.append(f"The new class {each.name} is not shown to be read: {each.words}.")


def _memory(cases: _Arrays, classes: Sequence[str], rules: Rules, found: _Findings) -> None:
    """Non-inferiority on the baseline, of each class and of all classes together. Losses are positive."""
    loss = cases.old - cases.new
    found.numbers["baseline_cases"] = float(len(loss))
    bound = resampling.upper(resampling.recalls(loss, cases.truth, cases.present, cases.draws), rules.bound_level)
    point = float(resampling.recalls(loss, cases.truth, cases.present, cases.once)[0])
    together = _tolerated("baseline", "all classes together", "macro_recall", Loss(point, bound), rules, found, bounded=True)
    small, fine = _class_losses(cases, classes, rules, found, "baseline")
    if together and fine:
        found.support.append(f"The old cases are not forgotten: mean recall on the baseline falls by {max(bound, 0):.1%} at most.")
    _unchecked(cases, classes, rules, found, "baseline", small)
    _subgroups(cases, rules, found, "baseline")


def _subgroups(cases: _Arrays, rules: Rules, found: _Findings, where: str) -> None:
    """No scanner, sex or age band pays either."""
    seen = list(groups.groups_of(cases.facets, cases.patients, cases.old - cases.new, cases.draws, rules.margin, rules.bound_level))
    found.numbers[f"{where}_subgroups"] = float(len(seen))
    for group in seen:
        found.numbers[f"{where}_loss:{group.facet}={group.value}"] = group.lost
        if group.harmed(rules.margin, rules.bound_level):
            limits = f"{group.lost:.1%} of its cases" + (f", up to {group.bound:.1%}" if group.bound is not None else "")
            reason = f"On the {where} it may read a subgroup worse, {group.title}: {limits}; tolerated are {rules.margin:.1%}."
            _wanting(reason, where, Loss(group.lost, group.lost if group.bound is None else group.bound), rules, found)


def _class_losses(
    cases: _Arrays, classes: Sequence[str], rules: Rules, found: _Findings, where: str, reference: _Arrays | None = None
) -> tuple[list[str], bool]:
    """Test each class's loss of recall; returns the classes too small for a bound, and whether all losses are tolerated.

    A class with fewer than 3 / margin cases could not show non-inferiority even without any change (rule of three; Hanley &
    Lippman-Hand 1983): there the loss itself must stay within the margin.
    """
    small, fine = list[str](), True
    for label in cases.present:
        own = cases.truth == label
        number = int(own.sum())
        enough = number >= 3 / rules.margin
        small += [] if enough else [f"{classes[label]} ({number})"]
        name = classes[label]
        loss = lost(cases, label, rules.margin, rules.bound_level, reference)
        fine &= _tolerated(where, f"class {name}", f"recall:{name}", loss, rules, found, bounded=enough)
    return small, fine


def _tolerated(where: str, words: str, name: str, loss: Loss, rules: Rules, found: _Findings, *, bounded: bool) -> bool:
    """Record a loss with its upper bound; object when the loss, or the bound where it is `bounded`, exceeds the margin.

    What the gate has too few cases to tell is no objection: it is left open.
    """
    found.numbers |= {f"{where}_loss:{name}": loss.lost, f"{where}_loss_upper:{name}": loss.bound}
    found.numbers |= {f"{where}_granted:{name}": loss.granted} if loss.granted else {}
    if loss.lost <= rules.margin and (not bounded or loss.bound <= rules.margin):
        return True
    limits = f"{loss.lost:.1%} recall, up to {loss.bound:.1%}; tolerated are {rules.margin:.1%}"
    limits += f", beyond the {loss.granted:.1%} that all classes lack" if loss.granted else ""
    reason = f"On the {where} it may lose too much, {words}: {limits}."
    if bounded:
        _wanting(reason, where, loss, rules, found)
    else:  # so few cases of a class would have to become thousands of all
        found.objections.append(reason)
    return False


def _wanting(reason: str, where: str, loss: Loss, rules: Rules, found: _Findings) -> None:
    """An objection, or something open where labels are likely to settle it; the baseline gets no further cases."""
    cases = int(found.numbers["gate_cases"] or 0)
    needed = cases_that_bound(loss, cases, rules.margin, rules.bound_level)
    if where != "gate" or not within_reach(needed, cases):
        found.objections.append(reason)
        return
    found.open.append(reason)
    found.needed = max(found.needed, needed)


def _unchecked(cases: _Arrays, classes: Sequence[str], rules: Rules, found: _Findings, where: str, small: Sequence[str]) -> None:
    """Name the classes whose loss has no bound because they have too few cases, and those that no case shows."""
    absent = [name for index, name in enumerate(classes) if index not in cases.present]
    found.numbers[f"{where}_classes_absent"] = float(len(absent))
    if small:
        what = f"Too few {where} cases to bound the loss within {rules.margin:.1%}, so only the loss itself is checked"
        found.support.append(f"{what}: {', '.join(small)}.")
    if absent:
        found.support.append(f"Not checked, because no {where} case shows it: {', '.join(absent)}.")


def _latency(ratio: float | None, rules: Rules, found: _Findings) -> None:
    found.numbers["latency_ratio"] = ratio
    if ratio is not None and ratio > rules.max_latency_ratio:
        found.objections.append(f"It is {ratio:.1f} times as slow as the champion; at most {rules.max_latency_ratio:g} is allowed.")
