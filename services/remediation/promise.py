"""Whether a cheap repair is worth one of the gate's judgements, as the very cases show that it was made from.

They flatter it. Where even they show that it gives back little of what was lost, and less than the gate's cases could show,
the ladder goes on: more labels would be asked for a repair that nobody wants, and each judgement makes the next one stricter.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from schemas.vocabulary import Remedy, Verdict
from services.remediation.discordance import discordant
from services.remediation.gate import Judgement, PairedCase, Rules
from services.remediation.shortage import cases_that_show

SCREENED: Final = (Remedy.RETHRESHOLD, Remedy.HARMONISE, Remedy.ADAPT_STATISTICS)
"""Rungs with a few numbers to choose: what they do to the cases they were chosen on, they do to others at best."""
ENOUGH: Final = 0.5
"""A repair that gives back this share of the lost recall, within a standard error, is judged however few the gate's cases are."""


def unpromising(
    taught: Sequence[PairedCase], usual: Mapping[str, float], gate_cases: int, classes: Sequence[str], rules: Rules
) -> Judgement | None:
    """A rejection without a judgement, None where the repair shall be judged. `usual`: recalls of the old classes."""
    before, after = (_macro_recall(taught, classes, side) for side in ("champion", "challenger"))
    lost = sum(usual.values()) / max(len(usual), 1) - before
    changes = [float(_right(case, "challenger")) - _right(case, "champion") for case in taught]
    wins, losses = discordant((case.patient for case in taught), changes)
    needed = cases_that_show(wins, losses, len(taught), rules.level)
    gain = after - before
    if 0 < needed <= gate_cases or (gain > 0 and gain + _error(taught, changes, classes) >= ENOUGH * lost):
        return None
    reason = (
        f"Not put to the gate: on the {len(taught)} cases that it was made from it reads {wins} patients better and {losses} "
        f"worse; the mean recall goes from {before:.1%} to {after:.1%}. The gate's {gate_cases} cases could not show that."
    )
    numbers: dict[str, float | None] = {
        "tune_wins": float(wins),
        "tune_losses": float(losses),
        "tune_macro_recall:champion": before,
        "tune_macro_recall:challenger": after,
    }
    return Judgement(Verdict.REJECT, (reason,), numbers)


def recovery(gate: Sequence[PairedCase], usual: Mapping[str, float], classes: Sequence[str]) -> tuple[str, dict[str, float | None]]:
    """How much of the lost mean recall a repair gives back on the gate's cases, in words and numbers; nothing where none was lost.

    `usual` are the recalls of the classes before the decline, on held-out old cases.
    """
    known = [usual[name] for name in classes if name in usual and any(case.truth == name for case in gate)]
    before, after = (_macro_recall(gate, classes, side) for side in ("champion", "challenger"))
    if not known or (whole := sum(known) / len(known)) <= before:
        return "", {}
    share = (after - before) / (whole - before)
    lost = f"{whole:.1%} on held-out old cases, {before:.1%} on the gate's"
    words = f"Of the mean recall that was lost ({lost}) it gives back {share:.0%}: {after:.1%}."
    return words, {"recovered": round(share, 4), "macro_recall:usual": round(whole, 6)}


def _right(case: PairedCase, side: str) -> bool:
    scores: Mapping[str, float] = getattr(case, side)
    return max(scores, key=lambda name: scores[name]) == case.truth


def _error(cases: Sequence[PairedCase], changes: Sequence[float], classes: Sequence[str]) -> float:
    """Standard error of the change of the mean recall."""
    groups = ([change for case, change in zip(cases, changes, strict=True) if case.truth == name] for name in classes)
    squares = [float(np.var(group)) / len(group) for group in groups if group]
    return math.sqrt(sum(squares)) / max(len(squares), 1)


def _macro_recall(cases: Sequence[PairedCase], classes: Sequence[str], side: str) -> float:
    groups = ([_right(case, side) for case in cases if case.truth == name] for name in classes)
    recalls = [sum(group) / len(group) for group in groups if group]
    return sum(recalls) / max(len(recalls), 1)
