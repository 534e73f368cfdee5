"""Which transactions may still commit events that an ordered subscription has passed over."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; none are waited for before the next event of such a subscription."""
    op.execute("ALTER TABLE cos_events.subscription ADD keyed_xmin bigint NOT NULL DEFAULT 0")


def downgrade() -> None:
    """Drop the column: what commits late may then run after later events of its key."""
    op.execute("ALTER TABLE cos_events.subscription DROP COLUMN keyed_xmin")
