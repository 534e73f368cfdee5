"""Deliveries that wait in PostgreSQL; pauses, order, deaths, replays; trace context."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; each delivery learns its event's place in the outbox."""
    op.execute("""
        ALTER TABLE cos_events.outbox ADD traceparent text;

        ALTER TABLE cos_events.subscription
            ADD backfill_until bigint,
            ADD holding boolean NOT NULL DEFAULT false,
            ADD holds integer NOT NULL DEFAULT 0,
            ADD paused_until timestamptz,
            ADD paused_because text,
            ADD probes integer NOT NULL DEFAULT 0,
            ADD probing_until timestamptz,
            ADD keyed_through bigint NOT NULL DEFAULT 0;

        ALTER TABLE cos_events.delivery
            ADD outbox_id bigint,
            ADD deaths integer NOT NULL DEFAULT 0,
            ADD generation integer NOT NULL DEFAULT 0,
            ADD order_key text,
            ADD correction text,
            DROP CONSTRAINT ck_delivery_state,
            ADD CONSTRAINT ck_delivery_state
                CHECK (state IN ('held', 'retrying', 'delivered', 'dead', 'discarded'));
        UPDATE cos_events.delivery SET outbox_id = outbox.id
            FROM cos_events.outbox WHERE outbox.event_id = delivery.event_id;
        DELETE FROM cos_events.delivery WHERE outbox_id IS NULL;
        ALTER TABLE cos_events.delivery ALTER outbox_id SET NOT NULL;

        DROP INDEX cos_events.ix_delivery_unfinished;
        CREATE INDEX ix_delivery_unfinished ON cos_events.delivery (subscription, state)
            WHERE state IN ('held', 'retrying', 'dead');
        CREATE INDEX ix_delivery_held
            ON cos_events.delivery (subscription, next_attempt_at, outbox_id)
            WHERE state = 'held';
        CREATE INDEX ix_delivery_order
            ON cos_events.delivery (subscription, order_key, outbox_id)
            WHERE state IN ('held', 'retrying');
    """)


def downgrade() -> None:
    """Drop the columns; what is held becomes a retry that the relay sends."""
    op.execute("""
        DROP INDEX cos_events.ix_delivery_held, cos_events.ix_delivery_order;
        DROP INDEX cos_events.ix_delivery_unfinished;
        CREATE INDEX ix_delivery_unfinished ON cos_events.delivery (subscription, state)
            WHERE state <> 'delivered';
        UPDATE cos_events.delivery SET state = 'retrying' WHERE state = 'held';
        UPDATE cos_events.delivery SET state = 'dead' WHERE state = 'discarded';
        ALTER TABLE cos_events.delivery
            DROP outbox_id, DROP deaths, DROP generation, DROP order_key, DROP correction,
            DROP CONSTRAINT ck_delivery_state,
            ADD CONSTRAINT ck_delivery_state CHECK (state IN ('retrying', 'delivered', 'dead'));
        ALTER TABLE cos_events.subscription
            DROP backfill_until, DROP holding, DROP holds, DROP paused_until, DROP paused_because,
            DROP probes, DROP probing_until, DROP keyed_through;
        ALTER TABLE cos_events.outbox DROP traceparent;
    """)
