"""A feed is called broken for doubts that are far commoner now than before and in the test set, and for nothing else."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file

from models.data import LabelledStudy, TensorSet
from models.predictor import Examined
from models.scoring import ScoredCase, score
from models.spec import ModelSpec, PercentileRange, PreprocessingSpec
from schemas.tables import BaselineCase
from schemas.vocabulary import Diagnosis
from services.evaluation.detector import Thresholds
from services.evaluation.diagnosis import Cause, feed_doubt
from services.evaluation.evaluate import Material, evaluate
from services.evaluation.stream import StreamCase
from services.remediation import data
from services.runtime.identity import Pseudonyms
from services.runtime.registration import baseline_rows

NOW = datetime(2026, 3, 12, tzinfo=UTC)


def cases(count: int, share: float = 0.0, code: str = "rescale_missing") -> list[tuple[str, ...]]:
    return [(code,) if number < share * count else () for number in range(count)]


@pytest.mark.parametrize(
    ("before", "baseline", "after", "broken"),
    [
        (cases(60), cases(200), cases(40, 0.5), True),
        (cases(60), [], cases(40, 0.5), True),
        ([], cases(200, 0.02), cases(40, 0.4), True),
        ([], cases(200, 0.02), cases(40, 0.2), False),
        ([], cases(200, 0.9), cases(40, 1.0), False),
        (cases(60, 0.9), cases(200), cases(40, 1.0), False),
        (cases(60), cases(200, 0.9), cases(40, 1.0), False),
        ([], [], cases(40, 0.6), True),
        ([], [], cases(40, 0.4), False),
        (cases(60), cases(200), cases(40, 1.0, "several_windows"), False),
        ([], [], cases(40, 1.0, "derived_images_skipped"), False),
        (cases(60), cases(200), cases(40, 1.0, "a_code_of_a_later_version"), True),
        (cases(60), cases(200), [], False),
        ([], cases(2), cases(2, 1.0), False),
    ],
)
def test_a_doubt_has_to_be_new_to_the_feed_and_to_the_model(before, baseline, after, broken):
    found = feed_doubt(before, baseline, after)
    assert (found is not None) is broken
    if found:
        assert found.kind is Diagnosis.PIPELINE


def test_the_commonest_new_doubt_is_named_with_its_shares():
    found = feed_doubt(cases(60, 0.1), cases(140, 0.1), cases(40, 0.75))
    said = "rescale missing in 75% of the studies, was 10%"
    assert found == Cause(Diagnosis.PIPELINE, said, found.p_value, {"rescale missing": found.p_value})
    assert found.p_value < 1e-9


def test_chance_breaks_no_feed():
    generator = np.random.default_rng(1)

    def drawn(count):
        return [
            tuple(code for code in ("window_missing", "slice_gap", "rescale_missing") if generator.random() < 0.3)
            for _ in range(count)
        ]

    assert sum(feed_doubt(drawn(30), drawn(60), drawn(20)) is not None for _ in range(300)) <= 3


def evidence(baseline_findings, recent):
    baseline = [
        BaselineCase(
            model="m", version=1, case_key=f"b{n}", patient_key=f"b{n}", truth="a", predicted="a", probabilities={}, findings=found
        )
        for n, found in enumerate(baseline_findings)
    ]
    stream = [StreamCase(1, f"p{n}", "a", "a", {"a": 1.0, "b": 0.0}, NOW, {}, found) for n, found in enumerate(recent)]
    return evaluate(Material("m", ("a", "b"), 1, 50, baseline, stream, Thresholds(8.0, 8.0, "bound"), 50, 0))


def test_a_batch_with_new_doubts_says_so_before_anything_falls():
    outcome = evidence([[]] * 100, cases(50, 0.6))
    assert outcome.evidence["feed_doubt"] == "rescale missing in 60% of the studies, was 0%"
    assert outcome.evidence["feed_doubt_p_value"] < 1e-6
    assert outcome.diagnosis is not Diagnosis.PIPELINE
    assert "feed_doubt" not in evidence([["rescale_missing"]] * 100, cases(50, 0.6)).evidence
    # Findings that were not kept are not the same as none.
    assert "feed_doubt" not in evidence([None] * 100, cases(50, 0.4)).evidence


def test_a_fall_on_images_as_odd_as_those_of_the_test_set_is_not_the_feeds_fault():
    def diagnosis(known):
        baseline = [
            BaselineCase(
                model="m",
                version=1,
                case_key=f"b{n}",
                patient_key=f"b{n}",
                truth="ab"[n % 2],
                predicted="ab"[n % 2],
                probabilities={},
            )
            for n in range(200)
        ]
        for case in baseline:
            case.findings = known
        stream = [
            StreamCase(1 + n // 50, f"p{n}", "ab"[n % 2], "b", {"a": 0.0, "b": 1.0}, NOW, {}, ["rescale_missing"])
            for n in range(150)
        ]
        return evaluate(Material("m", ("a", "b"), 3, 50, baseline, stream, Thresholds(3.0, 3.0, "bound"), 50, 0)).diagnosis

    assert diagnosis([]) is Diagnosis.PIPELINE
    assert diagnosis(None) is Diagnosis.PIPELINE
    assert diagnosis(["rescale_missing"]) is not Diagnosis.PIPELINE


def test_a_baseline_keeps_the_findings_of_its_cases():
    class Sure:
        spec = type("Spec", (), {"classes": ("a", "b")})

        def examine(self, studies):
            return [Examined({"a": 1.0, "b": 0.0}, np.zeros(2, np.float32)) for _ in studies]

    tensors = TensorSet((torch.zeros(1, 1, 2, 2),) * 2, (0, 1), ("p", "q"), ("one", "two"), {"two": ("slice_gap",)})
    scored = score(Sure(), tensors)
    assert scored == [
        ScoredCase("one", "p", "a", "a", {"a": 1.0, "b": 0.0}),
        ScoredCase("two", "q", "b", "a", {"a": 1.0, "b": 0.0}, ("slice_gap",)),
    ]
    assert [row.findings for row in baseline_rows("m", 1, scored, {}, Pseudonyms(b"k" * 32))] == [[], ["slice_gap"]]


def test_a_repairs_data_keep_the_findings_that_its_baseline_will_be_compared_by(tmp_path):
    ct = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    ct.RescaleSlope = "0"
    ct.save_as(tmp_path / "odd.dcm")
    plain = Path(str(get_testdata_file("CT_small.dcm", download=False)))
    studies = [LabelledStudy(key, (path,), "a", "p") for key, path in (("odd", tmp_path / "odd.dcm"), ("plain", plain))]
    spec = ModelSpec(
        name="m", task="t", classes=("a", "b"), preprocessing=PreprocessingSpec(size=(16, 16), intensity=PercentileRange())
    )
    loaded = data.load(studies, spec, None)
    assert loaded.findings == {"odd": ("rescale_absurd",)}
    assert data.combine(loaded.subset([1]), loaded.subset([0])).findings == {"odd": ("rescale_absurd",)}
