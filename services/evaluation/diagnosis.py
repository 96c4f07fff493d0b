"""A first diagnosis of a decline: what else changed when the recall fell, with the tests behind it.

Order of suspicion: a broken feed, then another scanner or site, then another mix of patients; what fits none of them is
`concept` when the images' descriptions are known to have stayed the same, else `unknown`.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from scipy.stats import chi2_contingency, fisher_exact

from models.findings import is_doubt
from schemas.vocabulary import Diagnosis
from services.evaluation.stream import StreamCase
from services.evaluation.verdict import Fall

RISK: Final = 0.01
"""Chance of naming a cause where nothing changed, over all facets or findings together."""
FEED_RISE: Final = 0.30
FEED_SHARE: Final = 0.50
"""With no stable part to compare with, a finding in this share of cases is a fault of the feed."""
FACET_RISE: Final = 0.30
NO_DOUBTS: Final = frozenset({"", "none"})

Findings = Sequence[Collection[str]]
"""Codes of the findings of each case."""


@dataclass(frozen=True)
class Cause:
    """What kind of change it was, in words for the root-cause line, and the p-value of the test behind it."""

    kind: Diagnosis
    what: str = ""
    p_value: float | None = None


NOTHING: Final = Cause(Diagnosis.NONE)


def diagnose(stream: Sequence[StreamCase], fall: Fall | None, *, alarmed: bool, mix_moved: bool, baseline: Findings = ()) -> Cause:
    """Explain a stream. Without a fall the only finding is a moved class mix, and only where it matters (`mix_moved`).

    `baseline` are the findings of the test set's cases, as far as they were kept: what the model was built with is no break.
    """
    if fall is None:
        return _prevalence(stream, mix_moved)
    before = [case for case in stream if case.batch < fall.start]
    after = [case for case in stream if case.batch >= fall.start]
    return (
        feed_doubt([case.findings for case in before], baseline, [case.findings for case in after])
        or _covariate(before, after, fall)
        or (_remainder(before, after) if alarmed else Cause(Diagnosis.UNKNOWN))
    )


def root_cause(cause: Cause, fall: Fall | None, since: datetime | None) -> str:
    """One plain line, e.g. "since 12 March 2026, StationName CT2; recall of glioma 0.71, was 0.90"; empty when nothing fell."""
    if fall is None or since is None:
        return cause.what
    changed = f", {cause.what}" if cause.what else ""
    return f"since {since.day} {since:%B} {since.year}{changed}; recall of {fall.label} {fall.recall:.2f}, was {fall.before:.2f}"


def mix_shift(baseline: Sequence[str], recent: Sequence[str]) -> float:
    """P-value that recent cases have the class mix of the baseline (chi-square; 1 where either is empty or of one class)."""
    return _chi_square(baseline, recent)


def _prevalence(stream: Sequence[StreamCase], mix_moved: bool) -> Cause:
    if not mix_moved:
        return NOTHING
    counts = Counter(case.truth for case in stream)
    common, number = counts.most_common(1)[0]
    return Cause(Diagnosis.PREVALENCE, f"the mix of patients is not that of the test set; {number / len(stream):.0%} are {common}")


def feed_doubt(before: Findings, baseline: Findings, after: Findings) -> Cause | None:
    """A doubt about the images that is in many cases now and was in few before and in the test set.

    Notes that a stated rule was applied are no doubts. With nothing to compare with, a doubt in half of the cases is one.
    """
    doubts = Counter(name for names in after for name in set(names) - NO_DOUBTS if is_doubt(name))
    references = [part for part in (before, baseline) if part]
    for name, number in doubts.most_common():
        share = number / len(after)
        found = [sum(name in names for names in part) for part in references]
        earlier, compared = sum(found), sum(map(len, references))
        highest = max((count / len(part) for count, part in zip(found, references, strict=True)), default=0.0)
        table = [[number, len(after) - number], [earlier, compared - earlier]]
        p_value = float(fisher_exact(table, alternative="greater").pvalue) if references else None
        risen = share - highest >= FEED_RISE and p_value is not None and p_value < RISK / len(doubts)
        if risen or (not references and share >= FEED_SHARE):
            was = earlier / compared if compared else 0.0
            return Cause(Diagnosis.PIPELINE, f"{name.replace('_', ' ')} in {share:.0%} of the studies, was {was:.0%}", p_value)
    return None


def _covariate(before: Sequence[StreamCase], after: Sequence[StreamCase], fall: Fall) -> Cause | None:
    """The facet whose values changed most clearly together with the fall; without a stable part, the one that errors follow."""
    names = sorted({name for case in (*before, *after) for name in case.facets})
    found: list[tuple[float, str, str]] = []
    for name in names:
        now = _values(after, name)
        then = _values(before, name)
        if not before:
            wrong = [case for case in after if case.truth == fall.label]
            now = _values((case for case in wrong if case.predicted != case.truth), name)
            then = _values((case for case in wrong if case.predicted == case.truth), name)
        value, rise = _risen(then, now)
        p_value = _chi_square(then, now)
        if rise >= FACET_RISE and p_value < RISK / len(names):
            found.append((p_value, name, value))
    if not found:
        return None
    p_value, name, value = min(found)
    return Cause(Diagnosis.COVARIATE, f"{name} {value or 'missing'}", p_value)


def _remainder(before: Sequence[StreamCase], after: Sequence[StreamCase]) -> Cause:
    described = bool(before) and any(case.facets for case in before) and any(case.facets for case in after)
    if described:
        return Cause(Diagnosis.CONCEPT, "the studies' descriptions are unchanged")
    return Cause(Diagnosis.UNKNOWN)


def _values(cases: Iterable[StreamCase], facet: str) -> list[str]:
    return [case.facets.get(facet, "") for case in cases]


def _risen(then: Sequence[str], now: Sequence[str]) -> tuple[str, float]:
    """The value whose share grew most, and by how much; a value's share among no cases is 0."""
    old, new = Counter(then), Counter(now)
    rises = {value: new[value] / len(now) - (old[value] / len(then) if then else 0.0) for value in new}
    return max(rises.items(), key=lambda item: (item[1], item[0]), default=("", 0.0))


def _chi_square(first: Sequence[str], second: Sequence[str]) -> float:
    """P-value of equal distributions; rare values are pooled, so that the test's approximation holds."""
    total = Counter([*first, *second])
    place = {value: number for number, (value, _) in enumerate(total.most_common(8))}
    rows = [np.bincount([place.get(value, 8) for value in values], minlength=9) for values in (first, second)]
    table = np.array(rows)
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2 or not table.sum(1).all():
        return 1.0
    if table.shape[1] == 2:
        return float(fisher_exact(table).pvalue)
    return float(chi2_contingency(table).pvalue)
