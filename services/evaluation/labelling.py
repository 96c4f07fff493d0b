"""What is known about the labels of one version: how late they are, which are missing, which are wrong. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.evaluation.cases import LabelledRow
from services.evaluation.delays import Delay, Sooner, by_source, delays, wrong_labelled_sooner
from services.evaluation.scored import ScoredCase
from services.evaluation.suspects import Noise, find_suspects
from services.evaluation.verification import Verification, settled, verify

MAX_FACETS: Final = 8
MAX_GROUPS: Final = 12
"""A facet with more values, such as a protocol's free text, has too few predictions in each to compare shares."""
COMMON: Final = 0.5
"""A facet counts where at least this share of the predictions has it."""
TEST_LEVEL: Final = 0.05
Evidence = dict[str, float | str | None]


@dataclass(frozen=True)
class Labelling:
    """Everything about the labels of one version."""

    delays: tuple[Delay, ...]
    by_source: dict[str, tuple[int, float, float]]
    sooner: Sooner | None
    verification: Verification | None
    noise: Noise | None


def examine(
    cases: Sequence[ScoredCase],
    classes: Sequence[str],
    baseline: Sequence[LabelledRow],
    now: datetime,
    wait_days: float,
    seed: int = 0,
) -> Labelling:
    """Ask all questions of the predictions of one version, labelled or not.

    Asked for an earlier `now` than the last label came, time has passed until then: what waits has waited so long too.
    """
    now = max([now, *(case.joined_at for case in cases if case.joined_at is not None)])
    facets = facets_of(cases)
    return Labelling(
        delays=tuple(delays(cases, now, facets)),
        by_source=by_source(cases),
        sooner=wrong_labelled_sooner(cases),
        verification=verify(settled(cases, now, wait_days), classes, facets),
        noise=find_suspects(cases, baseline, classes, seed),
    )


def facets_of(cases: Sequence[ScoredCase]) -> list[str]:
    """Facets that most predictions have, with more than one value and few enough to compare."""
    counts = Counter(name for case in cases for name in case.facets)
    found = []
    for name in sorted(name for name, many in counts.items() if many >= COMMON * len(cases)):
        groups = {case.facets[name] for case in cases if name in case.facets}
        if 2 <= len(groups) <= MAX_GROUPS:
            found.append(name)
    return found[:MAX_FACETS]


def evidence_of(found: Labelling, *, degraded: bool = False) -> Evidence:
    """The parts that a reader of an evaluation needs; what says nothing is left out.

    A model that is `degraded` contradicts right labels, so nothing is said then of wrong ones.
    """
    parts = _delay_evidence(found) | _verification_evidence(found.verification)
    parts |= _noise_evidence(None if degraded else found.noise)
    return {name: value for name, value in parts.items() if value is not None}


def _delay_evidence(found: Labelling) -> Evidence:
    if not found.delays:
        return {}
    overall, sooner = found.delays[0], found.sooner
    said: Evidence = {"label_delay_median_days": overall.median.days, "label_delay_90_percent_days": overall.ninety.days}
    if sooner and sooner.p_value < TEST_LEVEL:
        said["wrong_labelled_sooner"] = sooner.probability
        said["wrong_labelled_sooner_p_value"] = sooner.p_value
    return said


def _verification_evidence(found: Verification | None) -> Evidence:
    if found is None:
        return {}
    said: Evidence = {"labelled_share": found.labelled / found.cases}
    if found.unreached:
        said["share_in_unlabelled_classes"] = found.unreached
    if (by := found.selected_by) is not None:
        said |= {"labels_selected_by": by.facet, "labels_selected_p_value": by.p_value}
        said |= {"labelled_share_least": by.least, "labelled_share_most": by.most}
        for rate in found.rates:
            if rate.matters:
                said |= {f"weighted_{rate.name}": rate.weighted.value, f"unweighted_{rate.name}": rate.raw.value}
                said |= {f"weighted_{rate.name}_low": rate.weighted.low, f"weighted_{rate.name}_high": rate.weighted.high}
                said[f"effective_cases_{rate.name}"] = rate.effective_cases
    return said


def _noise_evidence(found: Noise | None) -> Evidence:
    if found is None:
        return {}
    noise: Evidence = {"label_noise": found.rate, "label_noise_low": found.low, "label_noise_high": found.high}
    return noise | {"suspect_labels": len(found.suspects)}
