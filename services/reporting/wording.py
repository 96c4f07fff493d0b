"""The words of the reports, for readers who look at images all day and not at statistics."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from schemas.vocabulary import Diagnosis, Status, Verdict
from services.reporting.facts import EvaluationFacts, Metric

STATUS: Final[dict[str, str]] = {
    Status.HEALTHY: "Healthy",
    Status.WATCH: "Watch",
    Status.DEGRADED: "Degraded",
    Status.UNDECIDED: "Undecided",
}
STATUS_MEANING: Final[dict[str, str]] = {
    Status.HEALTHY: "Nothing in the labelled cases speaks for a decline.",
    Status.WATCH: "There are signs of a decline, but not enough of them to raise the alarm.",
    Status.DEGRADED: "The alarm is raised: the model misses more than it did on {reference}, beyond what chance explains.",
    Status.UNDECIDED: "There are too few labelled cases to rule a decline out.",
}
WHOLE_IS_WELL: Final = "Taken together, the labelled cases show no decline; one group of them is read worse than the others."
EARLY_STEP: Final = (
    "Look at what the early warning names, and have more of the newest studies labelled: only labels show a decline."
)
GROUP_STEP: Final = (
    "Look at the studies of the group named above (scanner, protocol, patients): no repair is ordered for a group alone."
)
MIX_MOVED: Final = "The mix of patients has changed: some findings are more or less frequent than before."
KEEP_LABELLING: Final = "Keep the labels coming: without them a decline stays unseen."
NEXT_STEP: Final[dict[str, str]] = {
    Status.HEALTHY: f"Nothing needs to be done. {KEEP_LABELLING}",
    Status.WATCH: "Read the model's answers with extra care and see that recent cases get their label soon.",
    Status.DEGRADED: "Do not rely on the model's answers for the classes named above until {until}.",
    Status.UNDECIDED: "Have recent cases labelled as they come; picked ones would mislead.",
}
UNTIL: Final[dict[str, str]] = {
    Diagnosis.PIPELINE: "the image feed is repaired",
    Diagnosis.PREVALENCE: "the thresholds and the calibration have been checked",
}
"""What ends the time in which a degraded model is not to be relied on; for the other causes a repair that passes the gate."""
DIAGNOSIS_STEP: Final[dict[str, str]] = {
    Diagnosis.PREVALENCE: "Have the thresholds and the calibration checked before anything is trained again.",
    Diagnosis.COVARIATE: "Ask which scanner, protocol or software changed at the time given above.",
    Diagnosis.CONCEPT: "Ask whether reporting criteria or the source of the labels changed at the time given above.",
    Diagnosis.PIPELINE: "No training can repair it: have a person look at the feed (window, orientation, series, transfer).",
}
VERDICT: Final[dict[str, str]] = {
    Verdict.PROMOTE: "passed the gate",
    Verdict.REJECT: "did not pass the gate",
    Verdict.NEED_LABELS: "could not be judged for want of labelled cases",
}
BLIND_SPOTS: Final[tuple[str, ...]] = (
    "Cases without a label say nothing here. If only the easy or only the wrong cases get one, the numbers are off.",
    "Labels are taken as true. Errors in the reports behind them count as errors of the model.",
    "Groups that the data do not name (ward, referrer, history) may fare worse than the average without being seen.",
    "Errors that only move between wrong classes leave recall unchanged; the confusion matrix shows them.",
)
RULE_OF_FIVE: Final = (
    "The published rule (any of accuracy, precision, recall or F1 more than 5 % below the baseline) is stated for those who must "
    "report it. It takes no account of chance: on batches of 30 to 500 cases from a model that has not changed it fires on "
    "between 17 % and 79 % of them. It decides nothing here."
)
RULE_OF_CUSUM: Final = (
    "A classical chart of each class's recall, in standard deviations below the baseline less an allowance of 0.5. It takes the "
    "baseline for the truth and so alarms falsely in a third of years or more on a model that has not changed. It decides nothing "
    "here."
)
DASH: Final = "\N{EN DASH}"
_RATES: Final = (
    "accuracy",
    "recall",
    "precision",
    "f1",
    "macro",
    "balanced",
    "sensitivity",
    "specificity",
    "share",
    "margin",
    "drop",
    "fall",
    "change",
    "probability",
    "baseline_loss",
    "gate_loss",
    "label_noise",
)
_NO_RATES: Final = ("auroc", "average_precision", "ece", "brier", "statistic", "calibration", "p_value")
_ACRONYMS: Final = {"auroc": "AUROC", "f1": "F1", "ece": "calibration error (ECE)", "p": "p", "ci": "CI"}
_MEASURED: Final[dict[str, str]] = {
    "gate_cases": "Cases of the gate",
    "gate_patients": "Patients of the gate",
    "mcnemar_wins": "Patients read better by the new version",
    "mcnemar_losses": "Patients read worse by the new version",
    "mcnemar_p": "p of the exact McNemar test",
    "gate_judgement": "Which judgement on these patients",
    "gate_level": "Level of this judgement",
    "gate_cases_needed": "Cases of the gate that would show the gain",
    "accuracy_gain_low": "Gain of accuracy, lower limit",
    "accuracy_gain_high": "Gain of accuracy, upper limit",
    "macro_recall_gain_low": "Gain of macro recall, lower limit",
    "macro_recall_gain_high": "Gain of macro recall, upper limit",
    "calibration_error_low_champion": "Calibration error before, lower limit",
    "calibration_error_high_champion": "Calibration error before, upper limit",
    "calibration_error_low_challenger": "Calibration error after, lower limit",
    "calibration_error_high_challenger": "Calibration error after, upper limit",
    "calibration_error_loss_low": "Rise of the calibration error, lower limit",
    "baseline_cases": "Cases of the old test set",
    "baseline_loss": "Recall lost on the old test set",
    "baseline_loss_upper": "Recall lost on the old test set, at most",
    "gate_loss": "Recall lost on the gate's cases",
    "gate_loss_upper": "Recall lost on the gate's cases, at most",
    "gate_granted": "Recall that all classes lack on the gate's cases, left out of the loss",
    "baseline_classes_absent": "Classes that the old test set does not show",
    "gate_classes_absent": "Classes that the gate's cases do not show",
    "added_cases": "Cases of the gate, new class",
    "added_recall": "Recall of the new class",
    "added_p": "p of the exact test that the new class is read",
    "latency_ratio": "Time of the new version over that of the old",
    "tune_cases": "Cases to learn from",
    "labels_needed": "Labels needed",
    "labels_of_no_class": "Labels that are no class of the model",
}
_OWNERS: Final = {"champion": "before", "challenger": "after", "macro_recall": "all classes together"}
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])(?:(?<!e\.g\.)(?<!i\.e\.)(?<!\bno\.)(?<!\bvs\.)(?<!\bca\.) | (?![a-z0-9(“]))")
_LONGEST_SENTENCE: Final = 480
_LEAST_P: Final = 0.001
_FILLERS: Final = ("A report on the model is written.", "The report has the figures behind it.")
KEYWORD: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
"""Between the words of a DICOM keyword."""
_STARTS: Final = ("since", "estimated_start", "start")
_EVIDENCE: Final[dict[str, str]] = {
    "class": "Class behind the evidence",
    "scope": "Where the fall shows",
    "drop": "Estimated fall",
    "drop_low": "Estimated fall, lower limit",
    "drop_high": "Estimated fall, upper limit",
    "recall": "Recall since the fall began",
    "recall_before": "Recall before",
    "probability": "Probability of a fall of 3 points or more",
    "since": "Estimated start",
    "estimated_start": "Estimated start",
    "start": "Estimated start",
    "since_batch": "Batch in which the fall began",
    "since_batch_low": "… not before batch",
    "since_batch_high": "… not after batch",
    "root_cause": "Likely cause",
    "cause_p_value": "p of the likely cause",
    "change": "What the newest cases fit, beside those before",
    "change_what": "… what has changed",
    "change_p_value": "… p",
    "worse_subgroups": "Groups that are read worse than the others",
    "alarm_batch": "Batch that raised the alarm",
    "recovered_after_batch": "Recovered after batch",
    "statistic_a": "Statistic A (worse than all before)",
    "threshold_a": "Its threshold",
    "statistic_b": "Statistic B (worse than the baseline)",
    "threshold_b": "Its threshold",
    "threshold": "Alarm threshold",
    "thresholds_from": "Thresholds from",
    "smallest_fall_in_a_year": "Smallest fall that shows in a year",
    "more_cases_needed": "Labelled cases still needed",
    "unproven_classes": "Classes with too few cases to show a fall",
    "independent_cases": "Cases that count, one of each patient",
    "own_baseline_cases": "Own first cases among the reference",
    "returning_training_cases": "Left out: studies of patients known from training",
    "returning_training_patients": "Left out: patients known from training",
    "rule_metric": "Metric behind the 5 % rule",
    "rule_change": "Change of the metric behind the 5 % rule",
    "labelled_share": "Predictions that have a label",
    "label_delay_median_days": "Days after which half of the predictions have their label",
    "label_delay_90_percent_days": "Days after which nine of ten have it",
    "label_noise": "Share of wrong labels, estimated",
    "label_noise_low": "… lower limit",
    "label_noise_high": "… upper limit",
    "suspect_labels": "Labels to look at again",
    "seed": "Seed",
    "judged_on": "Judged on",
    "weeks_waiting_for_labels": "Weeks of acquisition that wait for labels",
    "first_week_waiting": "First of these weeks",
    "last_week_waiting": "Last of these weeks",
    "labels_awaited": "Labels that these weeks wait for",
    "cases_held_back": "Labelled cases of these weeks, not judged yet",
    "block_size": "Independent labelled cases in a block",
    "blocks_per_year": "Blocks in the year of the false-alarm budget",
    "variation_factor": "Variation from block to block that the counts are divided by",
    "variation_seen": "… as seen (1: chance alone)",
    "variation_pairs": "… pairs of blocks it was seen in",
}
"""Names of statistics, in the order in which a reader looks for them."""


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage, a dash where there is none."""
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def metric_name(name: str) -> str:
    """`recall:glioma` to `Recall, glioma`; acronyms keep their case, the gate's numbers have words of their own."""
    kind, _, owner = name.partition(":")
    words = " ".join(_ACRONYMS.get(word, word) for word in kind.replace("_", " ").split())
    shown = _OWNERS.get(owner, owner.removeprefix("recall:"))
    return _MEASURED.get(kind, f"{words[:1].upper()}{words[1:]}") + (f", {shown}" if shown else "")


def metric_value(name: str, value: float | None) -> str:
    """Rates in per cent, areas and errors with three decimals."""
    if is_rate(name):
        return percent(value)
    return DASH if value is None else f"{value:.3f}"


def is_rate(name: str) -> bool:
    """True for a metric that is a share and reads best in per cent."""
    kind = name.partition(":")[0].lower()
    return not any(word in kind for word in _NO_RATES) and any(word in kind for word in _RATES)


def with_interval(metric: Metric) -> str:
    """`84.0 % (79.1 to 88.2)`."""
    shown = metric_value(metric.name, metric.value)
    if metric.value is None or metric.low is None or metric.high is None:
        return shown
    if is_rate(metric.name):
        return f"{shown} ({100 * metric.low:.1f} to {100 * metric.high:.1f})"
    return f"{shown} ({metric.low:.3f} to {metric.high:.3f})"


def number(value: Any) -> str:
    """A number short enough to read; words as they are."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if float(value).is_integer() and abs(value) < 1e9:
            return f"{int(value):,}".replace(",", "\u202f")
        return f"{value:.3g}" if abs(value) < 0.001 or abs(value) >= 1e5 else f"{value:.3f}"
    return str(value)


def evidence_name(key: str) -> str:
    """A reader's name for a statistic."""
    return _EVIDENCE.get(key, metric_name(key))


def in_order(evidence: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Statistics as readers look for them, unknown ones by name at the end: a database may keep them in any order."""
    places = {key: place for place, key in enumerate(_EVIDENCE)}
    return sorted(evidence.items(), key=lambda item: (places.get(item[0], len(places)), item[0]))


def evidence_value(key: str, value: Any) -> str:
    """A statistic as text."""
    if key == "probability" and isinstance(value, int | float):
        return _chance(float(value))
    if key == "rule_metric":
        return metric_name(str(value))
    if key.endswith("p_value") and isinstance(value, int | float) and value < _LEAST_P:
        return f"below {_LEAST_P:g}"
    if isinstance(value, int | float) and not isinstance(value, bool) and is_rate(key) and -1 <= value <= 1:
        return percent(float(value))
    return moment(value) if isinstance(value, str) else number(value)


def moment(text: str) -> str:
    """A date and time as people write it, other text as it is."""
    if not re.match(r"^\d{4}-\d\d-\d\dT", text):
        return text
    try:
        return on(datetime.fromisoformat(text))
    except ValueError:
        return text


def on(at: datetime) -> str:
    """2 March 2026, 08:00 UTC."""
    return f"{at.day} {at:%B %Y, %H:%M} UTC"


def day(at: datetime) -> str:
    """2 March 2026."""
    return f"{at.day} {at:%B %Y}"


def counted(count: int, one: str, many: str = "") -> str:
    """1 label, 2 labels, no labels."""
    return f"{number(count) if count else 'no'} {one if count == 1 else many or one + 's'}"


def duration(span: timedelta) -> str:
    """A span of time in the unit that reads best."""
    hours = span.total_seconds() / 3600
    if hours < 1:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"


def start_of(evidence: Mapping[str, Any]) -> str:
    """The estimated start of the decline as text, empty when the detector gives none."""
    found = next((value for key in _STARTS if isinstance(value := evidence.get(key), str) and value), "")
    return moment(found)


def smallest_fall(evidence: Mapping[str, Any]) -> str:
    """What size of fall goes unseen: the detector's own figure for this volume, else what holds in general."""
    least = evidence.get("smallest_fall_in_a_year")
    if isinstance(least, int | float):
        return (
            f"At this volume of labelled cases, a fall in one class of less than about {100 * least:.0f} percentage points "
            "is likely to go unseen for a year."
        )
    if least is not None:
        return "At this volume of labelled cases no fall of a single class, however large, is sure to be seen within a year."
    return "A fall of 3 percentage points in one class is mostly missed within a year, by any method: there are too few cases."


def estimate(evidence: Mapping[str, Any]) -> str:
    """The detector's estimate of the fall in one sentence, empty when it gives none."""
    values = [evidence.get(key) for key in ("drop", "drop_low", "drop_high")]
    name, odds = evidence.get("class"), evidence.get("probability")
    if not isinstance(name, str) or not all(isinstance(value, int | float) for value in values):
        return ""
    drop, low, high = (round(100 * float(value or 0)) for value in values)
    sure = f" A true fall of 3 points or more has a probability of {_chance(float(odds))}." if isinstance(odds, int | float) else ""
    size = f"about {drop} percentage points lower than before (95 % interval {low} to {high})"
    return f"Since the decline began, recall of “{name}” is {size}.{sure}"


def _chance(odds: float) -> str:
    return "more than 99 %" if odds > 0.99 else percent(odds, 0)


def falls(latest: EvaluationFacts) -> list[Metric]:
    """Recalls of classes below their baseline, the largest fall first; those beyond chance alone where there are any."""
    below = [
        metric
        for metric in latest.metrics
        if metric.name.startswith("recall:") and metric.value is not None and (metric.baseline or 0) > metric.value
    ]
    clear = [metric for metric in below if metric.high is not None and metric.high < (metric.baseline or 0)]
    return sorted(clear or below, key=lambda metric: (metric.value or 0.0) - (metric.baseline or 0.0))


def fall_sentence(metric: Metric, reference: str) -> str:
    """Of 100 patients with glioma it recognised 61 (95 % interval 50 to 71, from 80 labelled cases); on the `reference` 88."""
    name = metric.name.partition(":")[2]
    found, low, high, was = (round(100 * (value or 0.0)) for value in (metric.value, metric.low, metric.high, metric.baseline))
    return (
        f"of 100 patients with “{name}” the model recognised {found} (95 % interval {low} to {high}, "
        f"from {metric.cases} labelled cases); on {reference} it was {was}."
    )


def worse_group(found: Mapping[str, Any]) -> str:
    """One sentence on a subgroup (`schemas.events.SubgroupResult`) that is read worse than the others."""
    facet = KEYWORD.sub(" ", str(found.get("facet", ""))).lower()
    of = f" of “{found['label']}”" if found.get("label") else ""
    now, others = found.get("recall"), found.get("recall_others")
    sizes = f": recall{of} {percent(now, 0)}, elsewhere {percent(others, 0)}" if now is not None and others is not None else ""
    since = f" since {moment(str(found['since'])).partition(',')[0]}" if found.get("since") else ""
    return f"Worse than the others{since}: {facet} {found.get('group', '')}{sizes}."


def ended(sentence: str) -> str:
    """A sentence with its full stop."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def joined(words: list[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def sentences(text: str) -> list[str]:
    """The sentences of a text: they end at a full stop, question or exclamation mark before a space, abbreviations apart."""
    parts = _SENTENCE_END.sub("\n", " ".join(text.split())).split("\n")
    return [part for part in parts if part]


def two_sentences(text: str) -> str:
    """Exactly two plain sentences of at most 1,000 characters together: what is missing is filled up, what is more left out."""
    found = [ended(_shortened(each)) for each in sentences(text)][:2]
    return " ".join([*found, *_FILLERS[len(found) :]])


def _shortened(sentence: str) -> str:
    """A sentence of at most 480 characters, cut between words where it is longer."""
    if len(sentence) <= _LONGEST_SENTENCE:
        return sentence
    return f"{sentence[:_LONGEST_SENTENCE].rpartition(' ')[0].rstrip('.,;:!?')} …"
