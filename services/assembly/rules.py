"""When a study is complete: layers of evidence, the strongest first, as a pure function of what is known.

1. Every performed procedure step of the study has ended, and every instance that a completed one names is stored (MPPS).
2. Storage commitment was asked for every instance stored, and no more came for a moment.
3. As many instances are stored as the sender says the study has.
4. No instance came for the quiet period of the study's modalities.
5. The study has been open for too long.

While a step is in progress, more images are to be expected: only the last layer applies. A signal completes a study once:
an instance that comes later and that no signal names waits for the quiet period, so that late instances bring one new revision
and not one each.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from schemas.settings import DicomSettings
from schemas.vocabulary import CompletedBy

COMMITMENT_SETTLE_S: Final = 3.0
"""Some modalities ask for commitment image by image: wait whether the next one comes."""


@dataclass(frozen=True)
class Rules:
    """The site's choices. Periods in seconds."""

    quiet_period_s: float
    quiet_periods: Mapping[str, float] = field(default_factory=dict)
    longest_open_s: float = 7200.0
    signals: Collection[str] = (CompletedBy.MPPS, CompletedBy.STORAGE_COMMITMENT, CompletedBy.INSTANCE_COUNT)

    @classmethod
    def from_settings(cls, settings: DicomSettings) -> "Rules":
        """As configured."""
        return cls(settings.quiet_period_s, settings.quiet_periods, settings.longest_open_s, settings.completion_signals)

    def quiet_after(self, modalities: Collection[str]) -> timedelta:
        """The longest quiet period of some modalities."""
        periods = [self.quiet_periods.get(modality, self.quiet_period_s) for modality in modalities]
        return timedelta(seconds=max(periods, default=self.quiet_period_s))

    @property
    def shortest_s(self) -> float:
        """The shortest quiet period."""
        return min([self.quiet_period_s, *self.quiet_periods.values()])


@dataclass(frozen=True)
class Named:
    """Instances that performed procedure steps name. `fresh`: something about them is newer than the last announcement."""

    steps_in_progress: int = 0
    instances: int = 0
    missing: int = 0
    fresh: bool = False


@dataclass(frozen=True)
class Evidence:
    """What is known of an open study. `uncommitted`: stored instances for which nobody asked commitment; None: nobody asked."""

    opened_at: datetime
    last_instance_at: datetime
    instances: int
    modalities: Collection[str]
    stated_instances: int = 0
    named: Named = Named()
    uncommitted: int | None = None


@dataclass(frozen=True)
class Judgement:
    """Complete, and why; or None and when to look again: at a time, or as soon as the study has `ring_at` instances."""

    completed_by: CompletedBy | None
    look_at: datetime
    ring_at: int | None


def judge(study: Evidence, rules: Rules, now: datetime) -> Judgement:
    """Whether an open study is complete at `now`."""
    due = _due(study, rules)
    reached = [reason for reason in CompletedBy if reason in due and due[reason] <= now]
    return Judgement(reached[0] if reached else None, min(due.values()), _ring_at(study, rules))


def _due(study: Evidence, rules: Rules) -> dict[CompletedBy, datetime]:
    """Layers that apply, each with the time from which it holds if nothing else happens."""
    last = study.last_instance_at
    due = {CompletedBy.LONGEST_OPEN: study.opened_at + timedelta(seconds=rules.longest_open_s)}
    if _uses(rules, CompletedBy.MPPS) and study.named.steps_in_progress:
        return due
    due[CompletedBy.QUIET_PERIOD] = last + rules.quiet_after(study.modalities)
    if _uses(rules, CompletedBy.MPPS) and study.named.instances and not study.named.missing and study.named.fresh:
        due[CompletedBy.MPPS] = last
    if _uses(rules, CompletedBy.STORAGE_COMMITMENT) and study.uncommitted == 0:
        due[CompletedBy.STORAGE_COMMITMENT] = last + timedelta(seconds=COMMITMENT_SETTLE_S)
    if _uses(rules, CompletedBy.INSTANCE_COUNT) and 0 < study.instances == study.stated_instances:
        due[CompletedBy.INSTANCE_COUNT] = last
    return due


def _ring_at(study: Evidence, rules: Rules) -> int | None:
    """The number of instances below which no signal can complete the study."""
    numbers = []
    if _uses(rules, CompletedBy.MPPS) and study.named.missing:
        numbers.append(study.instances + study.named.missing)
    if _uses(rules, CompletedBy.INSTANCE_COUNT) and study.stated_instances > study.instances:
        numbers.append(study.stated_instances)
    return min(numbers, default=None)


def _uses(rules: Rules, signal: CompletedBy) -> bool:
    return signal in rules.signals
