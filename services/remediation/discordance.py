"""Patients on whom two versions differ: each counts once, because studies of one patient are not independent."""

from collections.abc import Iterable


def discordant(patients: Iterable[str], changes: Iterable[float]) -> tuple[int, int]:
    """Patients with more studies read better than worse, and those with more read worse.

    `changes` by study: 1 where only the challenger is right, -1 where only the champion is, 0 where they agree.
    """
    balance: dict[str, float] = {}
    for patient, change in zip(patients, changes, strict=True):
        balance[patient] = balance.get(patient, 0.0) + change
    return sum(each > 0 for each in balance.values()), sum(each < 0 for each in balance.values())
