"""What a class loses of its recall with a challenger, and what it has to keep on cases of another kind (decision 0034). Pure."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from services.remediation import resampling
from services.remediation.resampling import Floats
from services.remediation.shortage import Loss

Integers = npt.NDArray[np.int64]


class Cases(Protocol):
    """Cases as arrays: truth, the champion's calls, right answers of both versions [n]; draws [draws, n], each case once [1, n]."""

    truth: Integers
    called: Integers
    old: Floats
    new: Floats
    present: list[int]
    draws: Floats
    once: Floats


def lost(cases: Cases, label: int, margin: float, level: float, reference: Cases | None = None) -> Loss:
    """Loss of a class's recall: against the champion on the same cases, or on `reference` where it has less.

    A recall that enough reference cases show is a goal that stands fixed, as in a trial with one arm; the uncertainty of one that
    few show counts too. Granted is what `granted` says. The smaller bound counts.
    """
    own = cases.truth == label
    loss = cases.old[own] - cases.new[own]
    paired = Loss(float(loss.mean()), resampling.upper(resampling.means(loss, cases.draws[:, own]), level))
    kept = reference.old[reference.truth == label] if reference is not None else loss[:0]
    if reference is None or not len(kept) or kept.mean() >= cases.old[own].mean():
        return paired
    few = len(kept) < 3 / margin
    goal = resampling.means(kept, reference.draws[:, reference.truth == label]) if few else kept.mean(keepdims=True)
    excess = excess_calls(cases, reference, label, level)
    draws = goal - resampling.means(cases.new[own], cases.draws[:, own]) - granted(cases, reference, excess, cases.draws)
    allowed = float(granted(cases, reference, excess, cases.once)[0])
    seen = float(kept.mean() - cases.new[own].mean()) - allowed
    beside = Loss(seen, resampling.upper(draws, level), float(np.nanstd(goal)), allowed)
    return min(paired, beside, key=lambda each: each.bound)


def granted(cases: Cases, reference: Cases, excess: float, draws: Floats) -> Floats:
    """What a class may be found less often than on the reference cases because all are, in each draw, at most `excess`."""
    both = [label for label in cases.present if label in reference.present]
    usual = resampling.recalls(reference.old, reference.truth, both, reference.once)[0]
    lacking = usual - resampling.recalls(cases.new, cases.truth, both, draws)
    return np.asarray(np.clip(lacking, 0.0, excess))


def excess_calls(cases: Cases, reference: Cases, label: int, level: float) -> float:
    """By how much the champion is shown to call the other classes so more often than on the reference cases; 0 where it is not.

    Mean over those classes of the share of their cases, so that another mix of patients makes no difference.
    """
    others = [each for each in cases.present if each in reference.present and each != label]
    if not others:
        return 0.0
    draws = [
        resampling.recalls((each.called == label).astype(np.float64), each.truth, others, each.draws) for each in (cases, reference)
    ]
    return max(0.0, -resampling.upper(draws[1] - draws[0], level))
