"""procrastinate: PostgreSQL is the queue; a job is deferred in the application's transaction."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from procrastinate.contrib.sqlalchemy import SQLAlchemyPsycopg2Connector
from sqlalchemy import create_engine, inspect
from sqlalchemy.orm import Session

from benchmarks.peers import work

app = App(connector=PsycopgConnector(conninfo=work.PLAIN_DATABASE_URL))
_applications = ExitStack()


@app.task(name="handle")
async def handle(event: dict[str, Any]) -> None:
    work.handled(event)


def prepare() -> None:
    engine = create_engine(work.DATABASE_URL)
    if not inspect(engine).has_table("procrastinate_jobs"):
        own = SyncPsycopgConnector(conninfo=work.PLAIN_DATABASE_URL)
        with app.replace_connector(own), app.open():
            app.schema_manager.apply_schema()
    _applications.enter_context(app.replace_connector(SQLAlchemyPsycopg2Connector())).open(engine)


def in_transaction(session: Session, event: dict[str, Any]) -> None:
    handle.configure(connection=session.connection()).defer(event=event)
