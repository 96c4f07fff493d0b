"""Evaluation of many labelled cases: every metric with its interval, against a scikit-learn loop over bootstrap samples.

The peer is what is usually written: for each draw resample the patients, take their cases, call scikit-learn's functions. It is
timed on a few draws and scaled to 2,000 (draws cost the same each), which the row says. Ours draws for the calibration error
only; the other limits come from each patient's influence. The table shows that both describe the same spread: our standard
error over the loop's, for each metric, and in a small world with known truth the share of intervals that hold it.
`--quick` draws too little to judge spread and memory.

python tests/benchmarks/evaluate.py [--quick] --json docs/benchmarks/evaluate.json
"""

import resource
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from bench_report import Target, arguments, at_least, at_most, finish
from sklearn import metrics as peer

from services.evaluation.cases import Cases, Floats
from services.evaluation.influence import Estimate
from services.evaluation.metrics import OF_CLASSES, measure, of_class, overall

DRAWS = 2000
CLASSES = ("none", "glioma", "meningioma", "pituitary")
SHOWN = ("accuracy", "macro_recall", "macro_f1", "recall:glioma", "auroc", "auroc:glioma", "average_precision", "brier", "ece")
SPREAD_DRAWS = 1000
"""Draws of the loop from which its standard errors are taken, at the small size."""


def world(cases: int, seed: int, *, images: int = 2, shift: float = 2.5) -> Cases:
    """`cases` images of patients who have `images` each, four classes; a patient's images are alike (correlation 0.5)."""
    generator = np.random.default_rng(seed)
    people, k = cases // images, len(CLASSES)
    truth = np.repeat(generator.choice(k, people, p=[0.4, 0.2, 0.2, 0.2]), images)
    noise = np.repeat(generator.normal(size=(people, k)), images, 0) + generator.normal(size=(people * images, k))
    logits = noise / np.sqrt(2)
    logits[np.arange(len(truth)), truth] += shift
    raw = np.exp(logits)
    probabilities = raw / raw.sum(1, keepdims=True)
    patients = np.repeat(np.arange(people), images)
    return Cases(CLASSES, truth, probabilities.argmax(1), probabilities, patients)


def loop(cases: Cases, draws: int, seed: int) -> dict[str, Floats]:
    """The metrics of `draws` patient bootstrap samples with scikit-learn."""
    generator = np.random.default_rng(seed)
    order = np.argsort(cases.patients, kind="stable")
    people = int(cases.patients.max()) + 1
    sizes = np.bincount(cases.patients, minlength=people)
    starts = np.cumsum(sizes) - sizes
    found: list[dict[str, float]] = []
    for _ in range(draws):
        chosen = generator.integers(0, people, people)
        count = sizes[chosen]
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        found.append(scores(cases, order[np.repeat(starts[chosen], count) + inside]))
    return {name: np.array([each[name] for each in found]) for name in found[0]}


def scores(cases: Cases, rows: np.ndarray[Any, Any]) -> dict[str, float]:
    """What `measure` reports, by scikit-learn; what it does not have (specificity, ECE, Brier of classes) by numpy."""
    truth, said, probabilities = cases.truth[rows], cases.predicted[rows], cases.probabilities[rows]
    k = len(cases.classes)
    precision, recall, f1, _ = peer.precision_recall_fscore_support(truth, said, labels=range(k), zero_division=0)
    confusion = peer.confusion_matrix(truth, said, labels=range(k))
    true, predicted, total = confusion.sum(1), confusion.sum(0), confusion.sum()
    specificity = (total - true - predicted + np.diag(confusion)) / (total - true)
    areas = [peer.roc_auc_score(truth == label, probabilities[:, label]) for label in range(k)]
    averages = [peer.average_precision_score(truth == label, probabilities[:, label]) for label in range(k)]
    found = {"accuracy": peer.accuracy_score(truth, said), "balanced_accuracy": peer.balanced_accuracy_score(truth, said)}
    found |= {"brier": float(((probabilities - np.eye(k)[truth]) ** 2).sum(1).mean()), "ece": ece(truth, said, probabilities)}
    each = {"recall": recall, "precision": precision, "specificity": specificity, "f1": f1}
    each |= {"auroc": np.array(areas), "average_precision": np.array(averages)}
    for name, values in each.items():
        found[name if name in {"auroc", "average_precision"} else f"macro_{name}"] = float(np.mean(values))
        found |= {f"{name}:{label}": float(value) for label, value in zip(cases.classes, values, strict=True)}
    return found


def ece(truth: np.ndarray[Any, Any], said: np.ndarray[Any, Any], probabilities: Floats) -> float:
    """Expected calibration error, ten bins."""
    confidence = probabilities.max(1)
    bins = np.minimum((confidence * 10).astype(int), 9)
    return float(np.abs(np.bincount(bins, (truth == said) - confidence, 10)).sum() / len(truth))


def compare(cases: int, peer_draws: int, repeats: int, rows: list[dict[str, Any]]) -> float:
    """Time both on the same cases, interleaved; the ratio of the medians, the loop scaled to all draws."""
    data = world(cases, 1)
    ours, theirs = [], []
    measure(data, draws=DRAWS)
    for turn in range(repeats):
        ours.append(timed(lambda: measure(data, draws=DRAWS)))
        theirs.append(timed(lambda turn=turn: loop(data, peer_draws, turn)) / peer_draws * DRAWS)
    scaled = f"{peer_draws} draws timed, scaled to {DRAWS}"
    rows.append({"what": "ours", "cases": cases, "seconds": statistics.median(ours), "note": f"{len(measure(data))} metrics"})
    rows.append({"what": "scikit-learn loop", "cases": cases, "seconds": statistics.median(theirs), "note": scaled})
    return statistics.median(theirs) / statistics.median(ours)


def timed(work: Callable[[], object]) -> float:
    """Processor seconds: the machine may be shared."""
    start = time.process_time()
    work()
    return time.process_time() - start


def estimates(cases: Cases) -> dict[str, Estimate]:
    """Every metric but the calibration error as an estimate."""
    parts: dict[str, list[Estimate]] = {name: [] for name in OF_CLASSES}
    found: dict[str, Estimate] = {}
    for number, label in enumerate(cases.classes):
        for name, each in of_class(cases, number).items():
            parts[name].append(each)
            found[f"{name}:{label}"] = each
    return found | overall(cases, parts)


def same_spread(cases: int, draws: int) -> dict[str, float]:
    """Our standard error over the loop's, for each metric."""
    data = world(cases, 2)
    drawn = loop(data, draws, 3)
    return {name: each.known(data.patients).variance ** 0.5 / drawn[name].std() for name, each in estimates(data).items()}


def coverage(runs: int, peer_runs: int, rows: list[dict[str, Any]]) -> float:
    """Share of 95 % intervals that hold the truth, 48 patients with three images each; in some runs the loop's percentiles too."""
    truth = {name: item.value or 0.0 for name, item in measure(world(400_000, 5, images=3), draws=2).items()}
    ours, theirs = dict.fromkeys(SHOWN, 0), dict.fromkeys(SHOWN, 0)
    for run in range(runs):
        data = world(144, 10_000 + run, images=3)
        found = measure(data, draws=DRAWS)
        drawn = loop(data, 200, run) if run < peer_runs else None
        for name in SHOWN:
            item = found[name]
            ours[name] += item.low is not None and item.high is not None and item.low <= truth[name] <= item.high
            if drawn:
                low, high = np.nanquantile(drawn[name], [0.025, 0.975])
                theirs[name] += bool(low <= truth[name] <= high)
    rows.extend({"what": f"coverage of {n}", "cases": 144, "ours": ours[n] / runs, "loop": theirs[n] / peer_runs} for n in SHOWN)
    return min(ours.values()) / runs


def main() -> None:
    """Run the comparison."""
    parser = arguments(__doc__ or "")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []
    small = compare(10_000, 2 if options.quick else 10, 1 if options.quick else 5, rows)
    large = None if options.quick else compare(1_000_000, 1, 2, rows)
    memory = None if options.quick else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ratios = same_spread(10_000, 20 if options.quick else SPREAD_DRAWS)
    rows += [{"what": f"standard error of {name}", "cases": 10_000, "ours over loop": ratio} for name, ratio in ratios.items()]
    covered = coverage(*((50, 5) if options.quick else (2000, 60)), rows)
    off = None if options.quick else float(np.exp(max(abs(np.log(ratio)) for ratio in ratios.values())))
    targets: list[Target] = [
        at_least("10,000 cases: times the scikit-learn loop", small, 50),
        at_least("1,000,000 cases: times the scikit-learn loop", large, 50),
        at_most(
            "1,000,000 cases: greatest resident memory (MiB, the loop's and the data's with it)",
            None if options.quick else memory,
            4096,
        ),
        at_most("largest ratio of standard errors, ours to the loop's", off, 1.2),
        at_least("least coverage of the 95 % intervals, 48 patients", covered, 0.92),
    ]
    finish("evaluate", rows, targets, options.json, f"{DRAWS} draws; processor seconds of one thread.")


if __name__ == "__main__":
    main()
