"""Settings of the evaluation of labelled cases."""

from pydantic import Field

from schemas.group import Group


class EvaluationSettings(Group):
    """The detector, the intervals, the groups and the classical rules."""

    false_alarms_per_year: float = Field(
        0.05, gt=0, lt=1, description="Chance a year of a false alarm of a version that stays as it was"
    )
    label_wait_days: float = Field(
        90.0, ge=0, description="A prediction without a label is waited for so long after its acquisition; 0 where only a sample is"
    )
    bootstrap_draws: int = Field(1000, ge=100, description="Draws behind the limits of the calibration error")
    subgroup_false_alarms_per_year: float = Field(
        0.05, gt=0, lt=1, description="Chance a year that any group is called worse than the others while none is"
    )
    cusum_run_length: float = Field(
        1040.0, gt=10, description="Batches between false alarms of one class's CUSUM chart, which is reported and orders nothing"
    )
    seed: int = 0
