"""Whether the clock may decide what is deleted for good.

A machine that boots with a wrong clock is put right by NTP some time later; had retention believed it meanwhile, every image
of the archive would be gone. So after a leap of the clock, which a long downtime looks like too, nothing is deleted for a day.
"""

import logging
from datetime import timedelta
from typing import Final

from schemas.clocks import ClockLook
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
LEAP: Final = timedelta(days=1)
PROBATION: Final = timedelta(days=1)


def is_steady(tx: Transaction, job: str, what: str) -> bool:
    """Whether the clock has gone on without a leap for long enough; to be asked by each job that deletes, every hour or oftener.

    `what` the job would delete is for the log, such as "image".
    """
    now = tx.clock.now()
    row = tx.session.get(ClockLook, job) or ClockLook(job=job, looked_at=now)
    if abs(now - row.looked_at) > LEAP:
        row.held_until = now + PROBATION
        logger.warning(
            "RET-204 the clock says %s, and said %s when %s looked last: no %s is deleted before %s, in case it is wrong",
            now.strftime("%F %H:%M"),
            row.looked_at.strftime("%F %H:%M"),
            job,
            what,
            row.held_until.strftime("%F %H:%M"),
        )
    row.looked_at = now
    tx.session.add(row)
    return row.held_until is None or row.held_until <= now
