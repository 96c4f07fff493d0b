"""The specification refuses what would change preprocessing unseen, and selection rules mean what they say."""

import pytest
from pydantic import ValidationError

from models.spec import Calibration, DicomWindow, FixedWindow, ModelSpec, PercentileRange, PreprocessingSpec, SelectionRule


@pytest.mark.parametrize("intensity", [FixedWindow(center=40, width=80), DicomWindow(), PercentileRange(low=1, high=99)])
def test_preprocessing_survives_json(intensity):
    spec = PreprocessingSpec(size=(24, 96, 96), channels=2, intensity=intensity, mean=0.4)
    assert PreprocessingSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.spatial_dims == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"sizes": (64, 64)},
        {"size": (64,)},
        {"size": (0, 64)},
        {"std": 0},
        {"slices": "middle", "max_images": 3},
        {"intensity": {"kind": "percentile", "low": 99, "high": 1}},
        {"intensity": {"kind": "window", "center": 40}},
        {"intensity": {"kind": "window", "center": 40, "width": float("nan")}},
    ],
)
def test_a_wrong_preprocessing_is_refused(wrong):
    with pytest.raises(ValidationError):
        PreprocessingSpec.model_validate(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": ("none", "x" * 65)},
        {"classes": ("none", "Miller^Anna")},
        {"classes": ("a",)},
        {"classes": ("a", "a")},
        {"classes": ("a", "")},
        {"name": "../escape"},
        {"calibration": Calibration(offsets=(0.1,))},
    ],
)
def test_a_wrong_model_is_refused(wrong):
    with pytest.raises(ValidationError):
        ModelSpec.model_validate({"name": "chest", "task": "pneumonia", "classes": ("a", "b"), **wrong})


def test_an_empty_rule_takes_everything():
    assert SelectionRule().matches("MR", "", "")


@pytest.mark.parametrize(
    ("rule", "study", "expected"),
    [
        (SelectionRule(modalities=("CR", "DX")), ("dx", "CHEST", ""), True),
        (SelectionRule(modalities=("CR", "DX")), ("CT", "CHEST", ""), False),
        (SelectionRule(modalities=("MR",), body_parts=("HEAD", "BRAIN")), ("MR", " brain ", ""), True),
        (SelectionRule(modalities=("MR",), body_parts=("HEAD", "BRAIN")), ("MR", "", ""), False),
        (SelectionRule(description_contains="t1"), ("MR", "HEAD", "AX T1 POST"), True),
        (SelectionRule(description_contains="t1"), ("MR", "HEAD", "AX T2"), False),
        (SelectionRule(description_regex=r"\bt1\b.*post"), ("MR", "HEAD", "Ax T1 +C Post"), True),
        (SelectionRule(description_regex=r"^t2"), ("MR", "HEAD", "Ax T2"), False),
    ],
)
def test_every_part_of_a_rule_must_hold(rule, study, expected):
    assert rule.matches(*study) is expected


def test_a_regex_that_does_not_compile_is_refused():
    with pytest.raises(ValidationError, match="does not compile"):
        SelectionRule(description_regex="(")
