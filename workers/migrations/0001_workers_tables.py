"""The tables of COS's own subscribers, in schema `cos_l2`."""

from alembic import op

revision = "workers_0001"
down_revision = None
branch_labels = ("workers",)
depends_on = "0001"


def upgrade() -> None:
    """Create what the subscribers `activity` and `graph_staging` write."""
    op.execute("""
        CREATE SCHEMA IF NOT EXISTS cos_l2;

        CREATE TABLE cos_l2.activity (
            source_module text NOT NULL,
            event_type text NOT NULL,
            hour timestamptz NOT NULL,
            events bigint NOT NULL,
            CONSTRAINT pk_activity PRIMARY KEY (source_module, event_type, hour)
        );

        CREATE TABLE cos_l2.graph_node (
            id text CONSTRAINT pk_graph_node PRIMARY KEY,
            kind text NOT NULL,
            properties jsonb NOT NULL,
            staged_at timestamptz NOT NULL DEFAULT clock_timestamp()
        );

        CREATE TABLE cos_l2.graph_edge (
            source text NOT NULL,
            kind text NOT NULL,
            target text NOT NULL,
            staged_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            CONSTRAINT pk_graph_edge PRIMARY KEY (source, kind, target)
        );
    """)


def downgrade() -> None:
    """Drop them; the next replay can fill them again."""
    op.execute("DROP TABLE cos_l2.graph_edge, cos_l2.graph_node, cos_l2.activity;")
