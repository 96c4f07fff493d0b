"""Metrics against scikit-learn on random cases, and their intervals' behaviour at the edges."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn import metrics as reference

from services.evaluation import metrics
from services.evaluation.cases import Cases
from services.evaluation.influence import Ranked, area
from services.evaluation.intervals import jeffreys
from services.evaluation.metrics import measure

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sklearn")


def make(truth, probabilities, patients=None):
    truth, probabilities = np.asarray(truth, np.int64), np.asarray(probabilities, float)
    classes = tuple(f"c{number}" for number in range(probabilities.shape[1]))
    people = np.arange(len(truth)) if patients is None else np.unique(patients, return_inverse=True)[1]
    return Cases(classes, truth, probabilities.argmax(1), probabilities, people.astype(np.int64))


@st.composite
def random_cases(draw):
    n, k = draw(st.integers(1, 40)), draw(st.integers(2, 4))
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    # Coarse scores make ties; few classes drawn make absent ones.
    raw = generator.integers(1, 5, size=(n, k)) + 0.0
    present = generator.permutation(k)[: draw(st.integers(1, k))]
    return make(generator.choice(present, n), raw / raw.sum(1, keepdims=True), generator.integers(0, n, n))


def close(found, expected):
    assert found.value == pytest.approx(expected, abs=1e-12)


@given(random_cases())
@settings(max_examples=120, deadline=None)
def test_values_agree_with_scikit_learn(cases):
    found = measure(cases, draws=100)
    truth, said, k = cases.truth, cases.predicted, len(cases.classes)
    present = np.unique(truth)
    close(found["accuracy"], reference.accuracy_score(truth, said))
    close(found["balanced_accuracy"], reference.balanced_accuracy_score(truth, said))
    for name, function in (("macro_precision", reference.precision_score), ("macro_f1", reference.f1_score)):
        close(found[name], function(truth, said, labels=present, average="macro", zero_division=0))
    if k > 2:
        close(found["brier"], ((cases.probabilities - np.eye(k)[truth]) ** 2).sum(1).mean())
    else:
        close(found["brier"], reference.brier_score_loss(truth == 1, cases.probabilities[:, 1], pos_label=True))
    for label in range(k):
        positive = truth == label
        expected = reference.roc_auc_score(positive, cases.probabilities[:, label]) if len(set(positive)) == 2 else None
        close(found[f"auroc:c{label}"], expected)
        expected = reference.average_precision_score(positive, cases.probabilities[:, label]) if len(set(positive)) == 2 else None
        close(found[f"average_precision:c{label}"], expected)
        recall = reference.recall_score(positive, said == label) if positive.any() else None
        precision = reference.precision_score(positive, said == label) if (said == label).any() else None
        specificity = reference.recall_score(~positive, said != label) if (~positive).any() else None
        close(found[f"recall:c{label}"], recall)
        close(found[f"precision:c{label}"], precision)
        close(found[f"specificity:c{label}"], specificity)
        close(found[f"f1:c{label}"], reference.f1_score(positive, said == label) if positive.any() else None)


@given(random_cases())
@settings(max_examples=60, deadline=None)
def test_intervals_hold_their_value_and_stay_in_range(cases):
    for name, item in measure(cases, draws=100).items():
        if item.value is None:
            assert (item.low, item.high) == (None, None)
        elif item.low is not None:
            assert 0 <= item.low <= item.value <= item.high <= (2 if name == "brier" else 1)


def test_no_cases_have_no_metrics():
    found = measure(make(np.zeros(0, int), np.zeros((0, 3))))
    assert {item.value for item in found.values()} == {None}
    assert set(found) == set(measure(make([0, 1, 2], np.eye(3))))


def test_expected_calibration_error_by_hand():
    cases = make([0, 0, 1, 1], [[0.95, 0.05], [0.95, 0.05], [0.95, 0.05], [0.35, 0.65]])
    close(measure(cases)["ece"], (3 * abs(2 / 3 - 0.95) + abs(1 - 0.65)) / 4)


def test_a_perfect_small_batch_is_not_certain():
    found = measure(make([0, 0, 1, 1, 1], np.eye(2)[[0, 0, 1, 1, 1]]))
    for name in ("accuracy", "macro_f1", "auroc", "recall:c0"):
        assert found[name].value == found[name].high == 1
        assert found[name].low < 0.8
    assert found["recall:c0"].low == jeffreys(2, 2)[0]


@pytest.mark.parametrize("right", [True, False])
def test_at_the_boundary_patients_count_and_not_their_images(right):
    """Three patients of 50 images each, all read alike: no more is known than from three images."""
    truth = np.repeat([0, 1, 0], 50)
    probabilities = np.where(np.eye(2)[truth if right else 1 - truth] > 0, 0.9, 0.1)
    found = measure(make(truth, probabilities, np.repeat(np.arange(3), 50)))
    alone = measure(make([0, 1, 0], probabilities[::50]))
    for name in ("accuracy", "recall:c0", "macro_recall", "macro_f1", "f1:c0", "auroc", "auroc:c1"):
        assert (found[name].low, found[name].high) == (alone[name].low, alone[name].high), name
    # A separation between the one patient of a class and the two others rests on one.
    assert found["auroc:c0"].low == (jeffreys(1, 1)[0] if right else 0.0)


def test_several_cases_of_a_patient_widen_the_interval():
    generator = np.random.default_rng(1)
    right = np.repeat(generator.random(40) < 0.8, 5)
    probabilities = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    alone = measure(make(np.zeros(200, int), probabilities))
    clustered = measure(make(np.zeros(200, int), probabilities, np.repeat(np.arange(40), 5)))

    def width(item):
        return item.high - item.low

    for name in ("accuracy", "recall:c0", "macro_f1", "brier"):
        assert 1.8 < width(clustered[name]) / width(alone[name]) < 2.6


def test_intervals_cover():
    """About 95 % of intervals hold the truth; three standard errors of 400 runs below it is 91.7 %."""
    generator, hits = np.random.default_rng(7), {"recall:c0": 0, "macro_f1": 0}
    runs, recalls = 400, np.array([0.8, 0.9])
    confusion = np.array([[0.8, 0.2], [0.1, 0.9]]) / 2
    f1 = [2 * confusion[c, c] / (confusion[c].sum() + confusion[:, c].sum()) for c in (0, 1)]
    expected = {"recall:c0": 0.8, "macro_f1": np.mean(f1)}
    for _ in range(runs):
        truth = generator.integers(0, 2, 120)
        right = generator.random(120) < recalls[truth]
        said = np.where(right, truth, 1 - truth)
        found = measure(make(truth, np.eye(2)[said] * 0.8 + 0.1), draws=200)
        for name, value in expected.items():
            hits[name] += found[name].low <= value <= found[name].high
    assert min(hits.values()) / runs > 0.917


@pytest.mark.parametrize("recall", [0.9, 0.95])
def test_intervals_cover_patients_with_several_images(recall):
    """Twelve patients a class, five images each that are right or wrong together (intra-class correlation 0.7): mean
    recall is 1 in an eighth of the runs. Percentiles of a patient bootstrap cover in 87 to 89 %."""
    generator, runs = np.random.default_rng(11), 300
    truth, people = np.repeat([0, 1], 60), np.repeat(np.arange(24), 5)
    hits = dict.fromkeys(("macro_recall", "recall:c0", "accuracy"), 0)
    for _ in range(runs):
        of_patient = generator.beta(recall * 3 / 7, (1 - recall) * 3 / 7, 24)
        said = np.where(generator.random(120) < of_patient[people], truth, 1 - truth)
        found = measure(make(truth, np.eye(2)[said] * 0.8 + 0.1, people), draws=2)
        for name in hits:
            hits[name] += found[name].low <= recall <= found[name].high
    assert min(hits.values()) / runs > 0.917, hits


def test_findings_that_do_not_exclude_each_other_are_tasks_of_their_own():
    """A multi-label task is one binary task a finding; their means are scikit-learn's macro values."""
    generator = np.random.default_rng(4)
    truth = generator.random((300, 3)) < (0.5, 0.2, 0.05)
    score = np.clip(np.round(0.4 * truth + generator.random((300, 3)) * 0.6, 2), 0, 1)
    found = [measure(make(truth[:, label], np.stack([1 - score[:, label], score[:, label]], 1)), draws=2) for label in range(3)]

    def mean(name):
        return np.mean([each[name].value for each in found])

    said = score > 0.5
    assert mean("auroc:c1") == pytest.approx(reference.roc_auc_score(truth, score, average="macro"))
    assert mean("average_precision:c1") == pytest.approx(reference.average_precision_score(truth, score, average="macro"))
    assert mean("f1:c1") == pytest.approx(reference.f1_score(truth, said, average="macro"))
    assert mean("recall:c1") == pytest.approx(reference.recall_score(truth, said, average="macro"))
    assert 1 - mean("accuracy") == pytest.approx(reference.hamming_loss(truth, said))


def test_probabilities_that_do_not_sum_to_one_keep_their_intervals_in_range():
    generator = np.random.default_rng(5)
    item = measure(make(generator.integers(0, 4, 30), generator.random((30, 4)) * 0.2 + 0.8))["brier"]
    assert item.value > 2
    assert item.low < item.value < item.high <= 4


@pytest.mark.parametrize("label", [0, 1])
def test_a_batch_of_one_class_has_what_it_can_have(label):
    said = np.array([label] * 8 + [1 - label] * 2)
    found = measure(make(np.full(10, label), np.eye(2)[said] * 0.8 + 0.1))
    assert found["accuracy"].value == found["macro_recall"].value == found[f"recall:c{label}"].value == 0.8
    for name in ("auroc", "average_precision", f"recall:c{1 - label}", f"f1:c{1 - label}", f"specificity:c{label}"):
        assert (found[name].value, found[name].low, found[name].high) == (None, None, None)
    assert found[f"precision:c{1 - label}"].value == 0


def test_one_case_is_measured_and_next_to_nothing_is_said_of_it():
    found = measure(make([0], [[0.9, 0.1]]))
    assert (found["accuracy"].value, found["accuracy"].high) == (1, 1)
    assert found["accuracy"].low < 0.2
    assert found["brier"].high - found["brier"].low > 0.5


def test_the_confusion_matrix_has_limits_of_the_shares_of_its_rows():
    matrix = metrics.confusion(make([0] * 10 + [1] * 10, np.eye(3)[[0] * 8 + [1] * 2 + [1] * 10]))
    assert matrix.counts == ((8, 2, 0), (0, 10, 0), (0, 0, 0))
    assert (matrix.low[0][0], matrix.high[0][0]) == pytest.approx(jeffreys(8, 10))
    assert matrix.high[0][2] == jeffreys(0, 10)[1]
    assert matrix.low[2] == matrix.high[2] == (None, None, None)
    assert metrics.confusion(make(np.zeros(0, int), np.zeros((0, 2)))) is None


def weighted(cases, weights):
    """Each metric by scikit-learn with case weights."""
    truth, said, k = cases.truth, cases.predicted, len(cases.classes)
    found = {"accuracy": reference.accuracy_score(truth, said, sample_weight=weights)}
    average = {"average": "macro", "zero_division": 0, "sample_weight": weights, "labels": np.unique(truth)}
    found["macro_f1"] = reference.f1_score(truth, said, **average)
    found["macro_precision"] = reference.precision_score(truth, said, **average)
    found["macro_recall"] = reference.recall_score(truth, said, **average)
    squared = (cases.probabilities - np.eye(k)[truth]) ** 2
    found["brier"] = np.average(squared.sum(1) / (2 if k == 2 else 1), weights=weights)
    for label in range(k):
        score = cases.probabilities[:, label]
        found[f"auroc:{label}"] = reference.roc_auc_score(truth == label, score, sample_weight=weights)
        found[f"average_precision:{label}"] = reference.average_precision_score(truth == label, score, sample_weight=weights)
    return found


@given(random_cases().filter(lambda cases: len(set(cases.truth)) == len(cases.classes)))
@settings(max_examples=15, deadline=None)
def test_influences_are_derivatives_by_the_weight_of_a_case(cases):
    parts = {name: [] for name in metrics.OF_CLASSES}
    for label in range(len(cases.classes)):
        for name, each in metrics.of_class(cases, label).items():
            parts[name].append(each)
    found = metrics.overall(cases, parts)
    found |= {f"{name}:{label}": each for name in ("auroc", "average_precision") for label, each in enumerate(parts[name])}
    step = 1e-6
    plain = weighted(cases, np.ones(cases.count))
    for place in range(min(cases.count, 6)):
        heavier = weighted(cases, np.ones(cases.count) + step * (np.arange(cases.count) == place))
        for name, value in heavier.items():
            assert found[name].influence[place] == pytest.approx((value - plain[name]) / step, abs=1e-4), name
    for name in plain:
        assert found[name].influence.sum() == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_variance_of_an_area_is_delongs(seed):
    """With one case a patient, against the pairwise definition; the two sides' n - 1 differ, so large samples."""
    generator = np.random.default_rng(seed)
    positive = generator.random(200) < 0.4
    score = np.round(generator.normal(size=200) + positive, 1)
    kernel = (score[positive][:, None] > score[~positive]) + 0.5 * (score[positive][:, None] == score[~positive])
    expected = kernel.mean(1).var() / positive.sum() + kernel.mean(0).var() / (~positive).sum()
    found = area(Ranked.of(score, positive), np.arange(200))
    assert found.value == pytest.approx(kernel.mean())
    assert found.influence @ found.influence == pytest.approx(expected)


def test_recall_of_one_image_a_patient_has_jeffreys_limits():
    found = measure(make([0] * 30 + [1] * 20, np.eye(2)[[0] * 24 + [1] * 26]), draws=2)
    assert (found["recall:c0"].low, found["recall:c0"].high) == pytest.approx(beta(24.5, 6.5).ppf([0.025, 0.975]))


def test_the_same_seed_gives_the_same_intervals():
    cases = make([0, 1, 0, 1, 1, 0], np.random.default_rng(0).dirichlet([1, 1], 6))
    assert dict(measure(cases, seed=3)) == dict(measure(cases, seed=3))
    assert dict(measure(cases, seed=3)) != dict(measure(cases, seed=4))


def test_ten_thousand_cases_take_seconds():
    generator = np.random.default_rng(0)
    cases = make(generator.integers(0, 4, 10_000), generator.dirichlet(np.ones(4), 10_000))
    start = time.process_time()
    measure(cases, draws=200)
    assert time.process_time() - start < 20
