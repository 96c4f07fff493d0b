"""Labels that come late, looked at every week as the service does: which streams alarm, and how soon they see a fall."""

import numpy as np
from detector_bench.ours import model
from detector_bench.worlds import FALLS, STABLE, WORLDS, YEAR, path, per_class, streams, test_sets

from services.evaluation.detector import Counts
from services.evaluation.dispersion import steadied
from services.evaluation.lateness import complete
from services.evaluation.verdict import first_alarm

SIZE = 100
DELAYS = {"independent": (2.0, 2.0), "by class": None, "errors sooner": (4.0, 0.5)}
"""Mean weeks until the label comes, of right and of wrong answers; by class: 0.5 to 4 weeks."""
WAYS = ("order of arrival", "order of acquisition", "complete weeks", "pending as right", "deployed: either of the two")


def late(kind: str, world: str, fall: str, replicates: int, generator) -> dict:
    """Per way of ordering: the week of the first alarm of each stream, counted from the fall; 0 where it came before."""
    place, name = WORLDS[world], fall
    weeks = STABLE + YEAR if name else YEAR
    worlds = path(place, FALLS[name], weeks) if name else [place] * weeks
    found: dict[str, list] = {way: [] for way in WAYS}
    for number, confusion in enumerate(test_sets(place, replicates, generator)):
        owner = model(confusion, SIZE, number)
        cases = _cases(streams(worlds, SIZE, 1, generator)[0], kind, generator)
        first = {way: _first(owner, cases, way, weeks) for way in WAYS[:4]}
        both = [week for week in (first["complete weeks"], first["pending as right"]) if week is not None]
        first[WAYS[4]] = min(both, default=None)
        for way, week in first.items():
            found[way].append(week)
    return {"first": found, "weeks": weeks, "start": STABLE if name else 0}


def _cases(confusion, kind, generator):
    """Rows (week, class, predicted, week of the label) of one stream [T, K, K], in chance order within a week."""
    weeks, truth, said = (np.repeat(part.ravel(), confusion.ravel()) for part in np.indices(confusion.shape))
    slow = np.linspace(0.5, 4.0, confusion.shape[-1])[truth]
    means = DELAYS[kind]
    mean = slow if means is None else np.where(truth == said, *means)
    labelled = weeks + generator.geometric(1 / (1 + mean)) - 1
    chance = np.lexsort((generator.random(len(weeks)), weeks))
    return weeks[chance], truth[chance], said[chance], labelled[chance]


def _first(owner, cases, way, weeks):
    """The first week at whose end the stream, ordered this way, has an alarm that the service would raise; None without."""
    acquired, truth, said, labelled = cases
    for week in range(weeks):
        seen = acquired <= week
        known = seen & (labelled <= week)
        order, label = acquired, truth
        if way == "order of arrival":
            kept, order = known, labelled
        elif way == "order of acquisition":
            kept = known
        elif way == "complete weeks":
            kept, label = seen.copy(), np.where(known, truth, said)
            kept[seen] = complete(acquired[seen], known[seen])
        else:
            kept, label = seen, np.where(known, truth, said)
        if kept.any() and alarms(owner, label[kept], said[kept], order[kept]):
            return week
    return None


def alarms(owner, truth, said, order):
    """Whether blocks of SIZE cases in this order hold an alarm."""
    place = np.argsort(order, kind="stable")
    truth, wrong = truth[place], (truth != said)[place]
    block = np.arange(len(truth)) // SIZE
    k = len(owner.confusion)
    cases = np.bincount(block * k + truth, minlength=(block[-1] + 1) * k).reshape(1, -1, k)
    errors = np.bincount(block * k + truth, wrong, minlength=(block[-1] + 1) * k).reshape(1, -1, k).astype(int)
    base = [part[None] for part in per_class(owner.confusion)]
    return first_alarm(steadied(Counts(base[0], base[1], errors, cases)), owner.thresholds, SIZE)[0] is not None
