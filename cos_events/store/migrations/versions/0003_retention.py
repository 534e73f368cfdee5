"""From when on the outbox is complete: older events may have been dropped."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, with its one row."""
    op.execute("""
        CREATE TABLE cos_events.retention (
            id integer CONSTRAINT pk_retention PRIMARY KEY
                CONSTRAINT ck_retention_one_row CHECK (id = 1),
            dropped_before timestamptz
        );
        INSERT INTO cos_events.retention (id) VALUES (1);
    """)


def downgrade() -> None:
    """Drop the table: `verify` then takes L1 rows whose events were dropped for unrecorded."""
    op.execute("DROP TABLE cos_events.retention")
