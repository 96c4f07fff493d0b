"""Settings of the label-free early warning."""

from pydantic import Field

from schemas.group import Group


class DriftSettings(Group):
    """The early warning on predictions, without labels."""

    window_cases: int = Field(200, ge=100, description="Predictions of a version in a window, one per patient")
    windows_per_year: int = Field(365, ge=12, le=2000, description="A window closes a year over this after the last, or later")
    warnings_per_year: float = Field(
        0.2, gt=0, lt=1, description="Chance of a false warning in a year, all signals together, where nothing changes"
    )
    reference_cases: int = Field(1000, ge=100, description="Most reference cases that a window is compared with")
    feed_history_days: int = Field(56, ge=14, description="Past from which the usual rate of studies by hour of week is learnt")
    feed_interval_s: float = Field(300.0, gt=0, description="How often the arrival of studies is looked at")
    feed_grace_s: float = Field(900.0, ge=0, description="A study that was announced this long ago should have been scored")
    keep_days: int = Field(400, ge=30, description="How long signatures and cases of the early warning are kept")
    seed: int = 0
