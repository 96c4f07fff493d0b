"""Whether the clock may decide what is deleted for good.

A machine that boots with a wrong clock is put right by NTP some time later; had retention believed it meanwhile, every image
of the archive would be gone. So after a leap of the clock, which a long downtime looks like too, nothing is deleted for a day.
"""

import logging
from datetime import datetime, timedelta
from typing import Final

from schemas.tables import Lease
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
LEAP: Final = timedelta(days=1)
PROBATION: Final = timedelta(days=1)


def is_steady(tx: Transaction, job: str, what: str) -> bool:
    """Whether the clock has gone on without a leap for long enough; to be asked by each job that deletes, every hour or oftener.

    `job` names two rows beside the leases: when it looked at the clock last (`JOB:seen`), and until when it deletes nothing
    (`JOB:held`). `what` it would delete is for the log, such as "image".
    """
    now, seen, held = tx.clock.now(), _time(tx, f"{job}:seen"), _time(tx, f"{job}:held")
    if seen is not None and abs(now - seen) > LEAP:
        held = now + PROBATION
        _keep(tx, f"{job}:held", held)
        logger.warning(
            "RET-204 the clock says %s, and said %s when %s looked last: no %s is deleted before %s, in case it is wrong",
            now.strftime("%F %H:%M"),
            seen.strftime("%F %H:%M"),
            job,
            what,
            held.strftime("%F %H:%M"),
        )
    _keep(tx, f"{job}:seen", now)
    return held is None or held <= now


def _time(tx: Transaction, name: str) -> datetime | None:
    row = tx.session.get(Lease, name)
    return row.expires_at if row is not None else None


def _keep(tx: Transaction, name: str, at: datetime) -> None:
    tx.session.merge(Lease(name=name, owner="clock", expires_at=at))
