"""The order of slices in space and what is odd about it. Pure: planes in, places and findings out."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.findings import Finding
from models.planes import Plane, Vector

SAME_PLACE: Final = 0.01
"""Millimetres within which two slices lie at the same place."""
_SAME_DIRECTION: Final = 1e-3
"""Largest difference of direction cosines within one orientation, about 0.06 degrees; headers differ in the last digits."""
_MOST_ORIENTATIONS: Final = 1_000
"""So many are compared with each other; a file with more is no series, and must not cost the square of its frames."""
_UNEVEN: Final = 0.1
_SHEARED_DEGREES: Final = 0.5
_TILT_TOLERANCE: Final = 2.0


def orientations(planes: Sequence[Plane]) -> list[list[int]]:
    """Indices of the planes by orientation (direction of rows and of columns), the group with most planes first."""
    equal: dict[bytes, list[int]] = {}
    for index, plane in enumerate(planes):
        equal.setdefault(plane.axes.tobytes(), []).append(index)
    groups: list[list[int]] = []
    known = np.empty((0, 6))
    for members in equal.values():
        axes = planes[members[0]].axes.reshape(1, 6)
        near = np.flatnonzero((np.abs(known - axes) <= _SAME_DIRECTION).all(axis=1))
        if len(near):
            groups[near[0]] += members
            continue
        groups.append(list(members))
        if len(known) < _MOST_ORIENTATIONS:
            known = np.concatenate([known, axes])
    return sorted(map(sorted, groups), key=len, reverse=True)


def places(planes: Sequence[Plane]) -> Vector:
    """[n] distance of each plane from the patient's origin along the first one's normal, in mm."""
    return np.asarray([float(planes[0].normal @ plane.origin) for plane in planes], dtype=np.float64)


def stacks(ordered: NDArray[np.float64]) -> list[list[int]]:
    """Indices of ascending places, those at the same place together."""
    found: list[list[int]] = []
    for index, place in enumerate(ordered):
        if found and place - ordered[found[-1][0]] <= SAME_PLACE:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def spacing_findings(ordered: NDArray[np.float64]) -> list[Finding]:
    """What is odd about the distances of neighbours, of distinct ascending places [n]."""
    gaps = np.diff(ordered)
    if gaps.size < 2:
        return []
    usual = float(np.median(gaps))
    odd = gaps[np.abs(gaps - usual) > _UNEVEN * usual]
    if not odd.size:
        return []
    ratio = odd / usual
    whole = (ratio > 1.5) & (np.abs(ratio - np.rint(ratio)) <= _UNEVEN * np.rint(ratio))
    findings = []
    # A few gaps of a whole number of slices are slices that did not come; many are how the series was planned.
    missing = whole if 4 * int(whole.sum()) <= gaps.size or gaps.size < 4 else np.zeros_like(whole)
    if missing.any():
        count = int((np.rint(ratio[missing]) - 1).sum())
        findings.append(Finding("slice_gap", f"{count} missing at {int(missing.sum())} places; usual distance {usual:.2f} mm"))
    if not missing.all():
        findings.append(Finding("slice_distance_uneven", f"{gaps.min():.2f} to {gaps.max():.2f} mm"))
    return findings


def shear_degrees(planes: Sequence[Plane]) -> float:
    """Angle between the slices' normal and the line through the first pixels of ordered planes; 0 for fewer than two."""
    if len(planes) < 2:
        return 0.0
    normal, way = planes[0].normal, planes[-1].origin - planes[0].origin
    along = abs(float(normal @ way))
    if along <= SAME_PLACE:
        return 0.0
    aside = float(np.linalg.norm(way - normal * float(normal @ way)))
    return float(np.degrees(np.arctan2(aside, along)))


def tilt_findings(planes: Sequence[Plane], stated: float) -> list[Finding]:
    """Gantry tilt as the ordered positions show it, and whether GantryDetectorTilt says the same."""
    if len(planes) < 2:
        return []
    seen = shear_degrees(planes)
    findings = [Finding("gantry_tilt", f"{seen:.1f} degrees")] if seen > _SHEARED_DEGREES else []
    if stated and abs(abs(stated) - seen) > _TILT_TOLERANCE:
        findings.append(
            Finding("gantry_tilt_contradicted", f"{seen:.1f} degrees by the positions, {abs(stated):.1f} by the header")
        )
    return findings


def spacing_is_mixed(planes: Sequence[Plane]) -> bool:
    """Whether pixel spacings differ by more than a hundredth, or only some planes have one."""
    known = [plane.spacing for plane in planes if plane.spacing is not None]
    if not known:
        return False
    values = np.asarray(known)
    return len(known) < len(planes) or bool((np.ptp(values, axis=0) > 0.01 * values.min(axis=0)).any())
