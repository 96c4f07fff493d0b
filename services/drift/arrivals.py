"""The look at the feed: reads arrivals and scores, and tells when they stop and when they go on."""

from datetime import timedelta

from schemas.drift_settings import DriftSettings
from schemas.vocabulary import Diagnosis
from services.drift import repository, wording
from services.drift.budget import FEED as SIGNAL
from services.drift.budget import Budget
from services.drift.feed import DAY, Arrival, Feed, judge_feed, judge_nothing
from services.drift.repository import FEED, Version
from services.drift.signals import Signal
from services.drift.storing import Observation, store
from services.runtime.transaction import Transaction


def look(tx: Transaction, settings: DriftSettings) -> None:
    """Judge the feed of every serving model; a change from or to a fault is stored and announced."""
    budget = Budget(settings.warnings_per_year, settings.windows_per_year)
    for version in repository.serving(tx.session):
        feed = feed_of(tx, version, settings)
        if feed is None:
            _look_at_nothing(tx, version, timedelta(days=settings.feed_history_days))
        else:
            _tell(tx, version, feed, judge_feed(feed, budget.part) or _again(tx, version, feed))


def _look_at_nothing(tx: Transaction, version: Version, history: timedelta) -> None:
    """A model without a score in the past that is known: an empty feed is a fault, and not only when it was full before."""
    now, registered = tx.clock.now(), repository.registered(tx.session, version[0])
    began = max(registered, now - history, repository.resumed(tx.session, version[0]) or registered)
    arrival = judge_nothing(began, now, repository.announced(tx.session, began, now), is_new=began == registered)
    _tell(tx, version, Feed((began,), began, now, 0, 0, 0, None), arrival)


def _again(tx: Transaction, version: Version, feed: Feed) -> Arrival | None:
    """That studies are scored again after a fault, while too little is known to judge at what rate."""
    before = repository.last_window(tx.session, version, FEED)
    if before is None or not before.warning or feed.scored_at[-1] <= before.last_at:
        return None
    return Arrival(0.0, 0.0, False, "Studies are scored.")


def feed_of(tx: Transaction, version: Version, settings: DriftSettings) -> Feed | None:
    """What is known of a model's arrivals; None before its first."""
    now, model = tx.clock.now(), version[0]
    since, due = now - timedelta(days=settings.feed_history_days), now - timedelta(seconds=settings.feed_grace_s)
    times = repository.scored_times(tx.session, model, since, now)
    if not times:
        return None
    began, session = times[0], tx.session
    earlier = repository.announced(session, began, due - DAY)
    return Feed(
        scored_at=times,
        began=began,
        now=now,
        announced=repository.announced(session, due - DAY, due),
        scored=repository.scored(session, model, due - DAY, due),
        since_last=repository.announced(session, times[-1], due),
        usual_share=repository.scored(session, model, began, due - DAY) / earlier if earlier else None,
    )


def _tell(tx: Transaction, version: Version, feed: Feed, arrival: Arrival | None) -> None:
    before = repository.last_window(tx.session, version, FEED)
    if arrival is None or arrival.warning == bool(before and before.warning):
        return
    signal = Signal(SIGNAL, arrival.statistic, arrival.threshold, arrival.warning, arrival.sentence, arrival.p_value)
    suspected = Diagnosis.PIPELINE if arrival.warning else Diagnosis.NONE
    seen = Observation(
        version=version,
        kind=FEED,
        number=before.number + 1 if before else 1,
        cases=feed.scored,
        first_at=feed.scored_at[-1],
        last_at=feed.now,
        signals=[signal],
        suspected=suspected,
        new=arrival.warning,
        summary=wording.of_feed(version[0], arrival),
    )
    store(tx, seen)
