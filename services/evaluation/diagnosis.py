"""The diagnosis of a decline: what else changed when the recall fell, with the tests behind it.

Order of suspicion: a broken feed (by its headers' doubts, then by the images), then another scanner or protocol (by the
descriptions), then what images, labels and answers say together (`services.evaluation.change`).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from scipy.stats import fisher_exact

from models import two_sample
from models.facets import NUMERIC, unit_of
from models.findings import is_doubt
from schemas.vocabulary import Diagnosis
from services.evaluation.cause import Cause as Cause  # noqa: PLC0414 - part of what this module offers
from services.evaluation.change import Side, alike, fault_seen, joined, kind_of_change
from services.evaluation.pictures import Pictures
from services.evaluation.stream import StreamCase
from services.evaluation.verdict import Fall
from services.runtime.signatures import Images
from services.runtime.words import facet

RISK: Final = 0.01
"""Chance of naming a cause where nothing changed, over all facets or findings together."""
FEED_RISE: Final = 0.30
FEED_SHARE: Final = 0.50
"""With no stable part to compare with, a finding in this share of cases is a fault of the feed."""
FACET_RISE: Final = 0.30
MOST_FACETS: Final = 3
"""Facets that a root-cause line names."""
_PLACES: Final = {"StationName": 0, "ManufacturerModelName": 2, "Manufacturer": 3, "SoftwareVersions": 4, "Rows": 5, "Columns": 5}
"""Which facets are named first: the station, what was set there (1), then what the station is and what follows from both."""
STABLE: Final = 100
"""Cases of the stream before a change from which the stream is what the change is seen against; else the baseline is."""
RECENT: Final = 200
"""Newest cases that are looked at for a change where nothing fell."""
NO_DOUBTS: Final = frozenset({"", "none"})

Findings = Sequence[Collection[str]]
"""Codes of the findings of each case."""


@dataclass(frozen=True)
class Context:
    """What a stream is seen against: the model's classes, its baseline's findings, and what is known of the images.

    `findings` are those of the test set's cases, as far as they were kept: what the model was built with is no break.
    """

    classes: Sequence[str] = ()
    findings: Findings = ()
    pictures: Pictures | None = None
    seed: int = 0


NOTHING: Final = Cause(Diagnosis.NONE)


def diagnose(
    stream: Sequence[StreamCase], fall: Fall | None, *, alarmed: bool, mix_moved: bool, context: Context | None = None
) -> Cause:
    """Explain a stream. Without a fall the only finding is a moved class mix, and only where it matters (`mix_moved`)."""
    if fall is None:
        return _prevalence(stream, mix_moved)
    known = context or Context()
    before = [case for case in stream if case.batch < fall.start]
    after = [case for case in stream if case.batch >= fall.start]
    return (
        feed_fault(before, after, known)
        or _described(before, after, fall.label)
        or _shown(before, after, known, fallen=alarmed)
        or (_remainder(before, after) if alarmed else Cause(Diagnosis.UNKNOWN))
    )


def recent_change(stream: Sequence[StreamCase], context: Context) -> Cause:
    """What has changed lately whether anything fell or not: the newest 200 cases against those before or the baseline."""
    batches = sorted({case.batch for case in stream}, reverse=True)
    counts = Counter(case.batch for case in stream)
    first, total = 0, 0
    for first in batches:
        total += counts[first]
        if total >= RECENT:
            break
    before = [case for case in stream if case.batch < first]
    after = [case for case in stream if case.batch >= first]
    found = feed_fault(before, after, context)
    if found is None and len(before) >= STABLE:
        found = _described(before, after, "")
    return found or _shown(before, after, context, fallen=False) or NOTHING


def feed_fault(before: Sequence[StreamCase], after: Sequence[StreamCase], context: Context) -> Cause | None:
    """A broken feed, as headers and files say it, or as the images themselves do."""
    doubt = feed_doubt([case.findings for case in before], context.findings, [case.findings for case in after])
    if doubt is not None or context.pictures is None:
        return doubt
    pictures = context.pictures
    seen, now = pictures.known(before), pictures.known(after)
    usual = pictures.of(seen) if len(seen) >= STABLE else pictures.reference
    return fault_seen(pictures.likenesses(usual, pictures.of(now)))


def root_cause(cause: Cause, fall: Fall | None, since: datetime | None) -> str:
    """One plain line, e.g. "since 12 March 2026, station CT2; recall of glioma 0.71, was 0.90"; empty when nothing fell."""
    if fall is None or since is None:
        return cause.what
    changed = f", {cause.what}" if cause.what else ""
    return f"since {since.day} {since:%B} {since.year}{changed}; recall of {fall.label} {fall.recall:.2f}, was {fall.before:.2f}"


def mix_shift(baseline: Sequence[str], recent: Sequence[str]) -> float:
    """P-value that recent cases have the class mix of the baseline (chi-square; 1 where either is empty or of one class)."""
    return two_sample.words(baseline, recent).p_value


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
            doubt, tests = name.replace("_", " "), {} if p_value is None else {name.replace("_", " "): p_value}
            return Cause(Diagnosis.PIPELINE, f"{doubt} in {share:.0%} of the studies, was {was:.0%}", p_value, tests)
    return None


def _shown(before: Sequence[StreamCase], after: Sequence[StreamCase], context: Context, *, fallen: bool) -> Cause | None:
    """What images, labels and answers say together; None where the images are not known or nothing shows."""
    pictures = context.pictures
    if pictures is None:
        return None
    usual, now = _usual(before, context, pictures), _side(after, pictures)
    if usual.images is None or now.images is None:
        return None
    found = kind_of_change(
        usual, now, pictures.likenesses(usual.images, now.images), context.classes, fallen=fallen, seed=context.seed
    )
    return None if found.kind in {Diagnosis.UNKNOWN, Diagnosis.NONE} else found


def _usual(before: Sequence[StreamCase], context: Context, pictures: Pictures) -> Side:
    """The stream before the change, with the baseline where their images are alike; the baseline where the stream is short."""
    known = _side(before, pictures)
    places = [place for place, key in enumerate(pictures.reference.keys) if key in pictures.answers]
    answers = [pictures.answers[pictures.reference.keys[place]] for place in places]
    tested = Side([truth for truth, _ in answers], [predicted for _, predicted in answers], pictures.reference.take(places))
    if len(known.truth) < STABLE:
        return tested
    return joined(known, tested) if alike(known, tested, context.seed) else known


def _side(cases: Sequence[StreamCase], pictures: Pictures) -> Side:
    known = pictures.known(cases)
    images: Images | None = pictures.of(known) if known else None
    return Side([case.truth or "" for case in known], [case.predicted for case in known], images)


def _described(before: Sequence[StreamCase], after: Sequence[StreamCase], label: str) -> Cause | None:
    """The facets whose values changed together with the fall; without a stable part, those that errors of `label` follow."""
    names = sorted({name for case in (*before, *after) for name in case.facets})
    if not before:
        wrong = [case for case in after if case.truth == label]
        before = [case for case in wrong if case.predicted == case.truth]
        after = [case for case in wrong if case.predicted != case.truth]
    moved: list[tuple[int, float, str, str]] = []
    for name in names:
        then, now = _values(before, name), _values(after, name)
        p_value, words = _facet_moved(name, then, now)
        if words and p_value < RISK / len(names):
            moved.append((_PLACES.get(name, 1), p_value, words, facet(name)))
    if not moved:
        return None
    named = sorted(moved)[:MOST_FACETS]
    tests = {name: p_value for _, p_value, _, name in named}
    return Cause(Diagnosis.COVARIATE, ", ".join(words for _, _, words, _ in named), min(tests.values()), tests)


def _facet_moved(name: str, then: Sequence[str], now: Sequence[str]) -> tuple[float, str]:
    """P-value that a facet is as it was, and how it has changed in words; empty where it moved too little to matter."""
    value, rise = _risen(then, now)
    if name in NUMERIC:
        old, new = ([float(each) for each in values if _is_number(each)] for values in (then, now))
        found = two_sample.numbers(old, new)
        if old and new and found.statistic >= FACET_RISE:
            how = _changed(_middle(old), _middle(new), unit_of(name)) or _more_often(then, now, unit_of(name))
            return found.p_value, f"{facet(name)} {how}"
    if rise < FACET_RISE:
        return 1.0, ""
    return two_sample.words(then, now).p_value, f"{facet(name)} {value or 'missing'}"


def _changed(old: str, new: str, unit: str) -> str:
    return "" if old == new else f"{new}{unit} instead of {old}{unit}"


def _more_often(then: Sequence[str], now: Sequence[str], unit: str) -> str:
    """What has become commoner, where the usual value is still the same."""
    value, _rise = _risen(then, now)
    shares = [sum(each == value for each in values) / len(values) for values in (now, then)]
    return f"{value}{unit} in {shares[0]:.0%} of the studies instead of {shares[1]:.0%}"


def _middle(values: Sequence[float]) -> str:
    """The commonest value; where none is common, the median."""
    value, number = Counter(values).most_common(1)[0]
    return f"{value if number >= len(values) / 4 else sorted(values)[len(values) // 2]:g}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _remainder(before: Sequence[StreamCase], after: Sequence[StreamCase]) -> Cause:
    described = bool(before) and any(case.facets for case in before) and any(case.facets for case in after)
    if described:
        return Cause(Diagnosis.CONCEPT, "the studies' descriptions are unchanged")
    return Cause(Diagnosis.UNKNOWN)


def _values(cases: Iterable[StreamCase], name: str) -> list[str]:
    return [case.facets.get(name, "") for case in cases]


def _risen(then: Sequence[str], now: Sequence[str]) -> tuple[str, float]:
    """The value whose share grew most, and by how much; a value's share among no cases is 0."""
    old, new = Counter(then), Counter(now)
    rises = {value: new[value] / len(now) - (old[value] / len(then) if then else 0.0) for value in new}
    return max(rises.items(), key=lambda item: (item[1], item[0]), default=("", 0.0))
