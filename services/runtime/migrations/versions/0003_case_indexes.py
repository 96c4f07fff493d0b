"""Indexes of the join: open cases by version and age, and the role that a patient was given."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | Sequence[str] | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

OPEN = sa.text("state = 'joined' AND role = 'trigger' AND serving")


def upgrade() -> None:
    op.create_index("ix_case_open", "case", ["model", "version", "joined_at"], sqlite_where=OPEN, postgresql_where=OPEN)
    op.create_index("ix_case_patient_key", "case", ["patient_key"])


def downgrade() -> None:
    op.drop_index("ix_case_patient_key", "case")
    op.drop_index("ix_case_open", "case")
