"""Real series and thousands of oddities of real files, where the collection is present (RECLAIM_TEST_DICOM names its folder)."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from models.errors import ModelError
from models.headers import read_header
from models.preprocessing import load_study
from models.series import series_of
from models.spec import FixedWindow, PercentileRange, PreprocessingSpec

FOLDER = Path(os.environ.get("RECLAIM_TEST_DICOM") or Path(__file__).parents[3] / "shared" / "data" / "dicom")
pytestmark = pytest.mark.skipif(not (FOLDER / "index.csv").is_file(), reason=f"NOT TESTED: no collection of real files at {FOLDER}")
SLICES = PreprocessingSpec(size=(32, 32), slices="evenly", max_images=8)
HEAD = PreprocessingSpec(size=(80, 128, 128), spacing=(2, 2, 2), intensity=FixedWindow(center=40, width=400), mean=0.0, std=1.0)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    def unpack(name: str) -> list[Path]:
        folder = tmp_path_factory.mktemp(name)
        with zipfile.ZipFile(FOLDER / f"{name}.zip") as archive:
            archive.extractall(folder)
        return sorted(file for file in folder.rglob("*") if file.is_file())

    return unpack


def details(paths, spec) -> dict[str, str]:
    return {finding.code: finding.detail for finding in load_study(paths, spec).findings}


def test_a_head_ct_with_a_tilted_gantry_and_two_slice_distances(unpacked):
    paths = unpacked("series_ct_head_ge_28")
    found = details(reversed(paths), SLICES)
    assert found.keys() == {"slice_distance_uneven", "gantry_tilt"}
    # GantryDetectorTilt says 18.5; the positions alone say the same.
    assert found["gantry_tilt"] == "18.5 degrees"
    places = [float(each.plane.normal @ each.plane.origin) for each in series_of(paths).slices if each.plane]
    assert len(places) == 28
    assert places == sorted(places)


def test_the_skull_stands_upright_once_the_tilt_is_set_straight(unpacked):
    paths = unpacked("series_ct_head_ge_28")
    upright = load_study(paths, HEAD).tensor[0, 0]
    # The skull's front and back, layer by layer: sheared, both edges run off together by tan(18.5) = 0.33 per layer.
    assert abs(_lean(upright)) < 0.12
    tilted = load_study(paths, HEAD.model_copy(update={"spacing": None})).tensor[0, 0]
    assert abs(_lean(tilted)) > 0.2


def _lean(volume: torch.Tensor) -> float:
    """Rows that the middle of the bright part moves per layer, over the layers of the braincase."""
    middles = []
    for layer in volume[len(volume) // 3 : 2 * len(volume) // 3]:
        rows = torch.nonzero((layer > 0.95).any(dim=1)).flatten()
        middles.append(float(rows.min() + rows.max()) / 2)
    return float(np.polyfit(np.arange(len(middles)), middles, 1)[0])


def test_a_t1_series_labelled_derived_by_its_scanner_is_scored_and_says_so(unpacked):
    paths = unpacked("series_mr_t1_head_48")
    spec = PreprocessingSpec(size=(32, 64, 64), spacing=(1.5, 4, 4), intensity=PercentileRange())
    assert details(paths, spec) == {"only_derived_images": "48 images"}
    with pytest.raises(ModelError, match="48 x derived image"):
        load_study(paths, spec.model_copy(update={"derived": "never"}))
    kept = paths[:20] + paths[23:]
    assert details(kept, spec)["slice_gap"].startswith("3 missing at 1 places")


def test_real_enhanced_objects_are_ordered_by_their_frames_planes(unpacked):
    for path in unpacked("enhanced_multiframe"):
        header = read_header(path)
        if not all(spot.plane for spot in header.spots):
            continue
        series = series_of([path])
        assert series.findings == ()
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        origins = [
            float(dataset.PerFrameFunctionalGroupsSequence[each.frame].PlanePositionSequence[0].ImagePositionPatient[2])
            for each in series.slices
        ]
        normal = float(series.slices[0].plane.normal[2])
        assert origins == sorted(origins, reverse=normal < 0)


@pytest.mark.parametrize("name", ["cr_dx_ct_single", "enhanced_multiframe", "transfer_syntaxes", "malformed_fuzz_corpus"])
def test_every_file_is_scored_finite_or_refused_with_a_reason(unpacked, name):
    scored = 0
    for path in unpacked(name):
        try:
            prepared = load_study([path], SLICES)
        except ModelError:
            continue
        assert torch.isfinite(prepared.tensor).all()
        scored += 1
    assert scored
