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
SEEN: Final = "retention:seen"
HELD: Final = "retention:held"
"""Rows beside the leases: when the clock was looked at last, and until when nothing is deleted."""


def is_steady(tx: Transaction) -> bool:
    """Whether the clock has gone on without a leap for long enough; to be asked every minute or so."""
    now, seen, held = tx.clock.now(), _time(tx, SEEN), _time(tx, HELD)
    if seen is not None and abs(now - seen) > LEAP:
        held = now + PROBATION
        _keep(tx, HELD, held)
        logger.warning(
            "RET-204 the clock says %s, and said %s when retention looked last: no image is deleted before %s, in case it is wrong",
            now.strftime("%F %H:%M"),
            seen.strftime("%F %H:%M"),
            held.strftime("%F %H:%M"),
        )
    _keep(tx, SEEN, now)
    return held is None or held <= now


def _time(tx: Transaction, name: str) -> datetime | None:
    row = tx.session.get(Lease, name)
    return row.expires_at if row is not None else None


def _keep(tx: Transaction, name: str, at: datetime) -> None:
    tx.session.merge(Lease(name=name, owner="clock", expires_at=at))
