"""Version 2: the term of the newest leader, which refuses the writes of older ones, and the fleet that the database belongs to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what several controllers on one database need."""
    op.add_column("counter", sa.Column("leader_term", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("counter", sa.Column("fleet_id", sa.Text, nullable=False, server_default=""))
