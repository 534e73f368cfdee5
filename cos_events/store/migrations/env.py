"""Alembic's entry: runs on the connection that `upgrade` hands over."""

from alembic import context

from cos_events.store.migrations import VERSION_TABLE
from cos_events.store.models import SCHEMA

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    version_table_schema=SCHEMA,
)
context.run_migrations()
