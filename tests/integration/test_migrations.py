"""Migrations: what they make is what the models say, however often and by however many."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Engine, Integer, MetaData, Table, Text, create_engine, make_url, text

import cos_events
import workers
from cos_events.l1.models import Base as L1Base
from cos_events.store import migrations
from cos_events.store.migrations import current, upgrade
from cos_events.store.models import Base as StoreBase
from workers.models import Base as WorkersBase

METADATA = [each.metadata for each in (StoreBase, L1Base, WorkersBase)]
DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"
SCHEMAS = sorted(str(each.schema) for each in METADATA)

# What autogenerate does not look at: conditions of indexes, checks, actions of foreign keys.
DEFINITIONS = text("""
    SELECT schemaname || '.' || indexname, indexdef FROM pg_indexes WHERE schemaname = ANY(:schemas)
    UNION ALL
    SELECT n.nspname || '.' || t.relname || '.' || c.conname, pg_get_constraintdef(c.oid)
    FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
    JOIN pg_namespace n ON n.oid = t.relnamespace WHERE n.nspname = ANY(:schemas)
    UNION ALL
    SELECT table_schema || '.' || table_name || '.' || column_name,
        concat_ws(' ', data_type, udt_name, is_nullable, column_default, identity_generation)
    FROM information_schema.columns WHERE table_schema = ANY(:schemas)
""")


@pytest.fixture
def empty(servers) -> Iterator[Engine]:
    """A database without any tables."""
    name = f"empty_{uuid4().hex[:12]}"
    admin = create_engine(servers.database_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = create_engine(make_url(servers.database_url).set(database=name))
    yield engine
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def differences(engine: Engine, metadata: list[MetaData]) -> list[object]:
    """What would have to change in the database for it to be as the models say."""
    ours = {
        "include_schemas": True,
        "include_name": lambda name, kind, _: kind != "schema" or name in SCHEMAS,
        "include_object": lambda _o, name, kind, *_: (kind, name) != ("table", "schema_version"),
        "compare_type": True,
        "compare_server_default": True,
        "target_metadata": metadata,
    }
    with engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection, opts=ours), metadata)


def definitions(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        rows = connection.execute(DEFINITIONS, {"schemas": SCHEMAS}).all()
    return {name: definition for name, definition in rows if "schema_version" not in name}


def downgrade(engine: Engine) -> None:
    config = migrations._config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")


def test_an_upgrade_makes_exactly_what_the_models_say(empty: Engine) -> None:
    before, after = upgrade(empty)
    assert before == []
    assert "workers_0001" in after
    assert differences(empty, METADATA) == []


@pytest.mark.parametrize("change", ["column", "table", "type", "nullable", "index"])
def test_the_comparison_sees_a_difference(database: Engine, change: str) -> None:
    altered = [MetaData(), *METADATA[1:]]
    for table in METADATA[0].tables.values():
        table.to_metadata(altered[0])
    outbox = altered[0].tables["cos_events.outbox"]
    if change == "column":
        outbox.append_column(Column("forgotten", Text))
    elif change == "table":
        altered[0].remove(outbox)
    elif change == "type":
        outbox.c.id.type = Text()
    elif change == "nullable":
        outbox.c.envelope.nullable = True
    else:
        outbox.indexes.clear()
    assert len(differences(database, altered)) >= 1


def test_indexes_constraints_and_defaults_are_as_the_models_make_them(
    database: Engine, empty: Engine
) -> None:
    with empty.begin() as connection:
        for metadata in METADATA:
            connection.execute(text(f"CREATE SCHEMA {metadata.schema}"))
            metadata.create_all(connection)
    made = definitions(empty)
    assert "cos_events.ix_outbox_unpublished" in made
    assert "cos_events.delivery.ck_delivery_state" in made
    assert definitions(database) == made


def test_an_applications_own_alembic_leaves_the_bus_alone_by_what_its_page_says(
    database: Engine,
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", DEPLOYMENT.read_text(), re.DOTALL)
    page: dict[str, Any] = {}
    exec(compile(block, "deployment.md", "exec", dont_inherit=True), page)  # noqa: S102
    theirs = MetaData()
    Table("stock", theirs, Column("id", Integer, primary_key=True), schema="public")

    def found(**options: object) -> list[str]:
        with database.connect() as connection:
            context = MigrationContext.configure(connection, opts=options)
            return [each[0] for each in compare_metadata(context, theirs)]

    assert "remove_table" in found(include_schemas=True)
    assert found(include_schemas=True, include_name=page["include_name"]) == ["add_table"]


def test_an_upgrade_of_an_upgraded_database_changes_nothing(empty: Engine) -> None:
    _, after = upgrade(empty)
    with empty.begin() as connection:
        connection.execute(
            text("INSERT INTO cos_events.subscription (name) VALUES ('kept')"),
        )
    before = definitions(empty)
    assert upgrade(empty) == (after, after)
    assert definitions(empty) == before
    with empty.connect() as connection:
        assert connection.scalar(text("SELECT name FROM cos_events.subscription")) == "kept"


def test_several_upgrades_at_once_are_harmless(empty: Engine) -> None:
    together = Barrier(3)

    def run(_: int) -> tuple[list[str], list[str]]:
        together.wait(30)
        return upgrade(empty)

    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(run, range(3)))
    after = outcomes[0][1]
    assert sorted(outcomes) == [([], after), (after, after), (after, after)]
    assert differences(empty, METADATA) == []


def test_the_database_says_which_revisions_it_is_at(empty: Engine) -> None:
    _, after = upgrade(empty)
    with empty.connect() as connection:
        assert current(connection) == after


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(empty: Engine) -> None:
    with empty.begin() as connection:
        connection.execute(text("CREATE SCHEMA mem0_cc; CREATE TABLE mem0_cc.base_log (x int)"))
    before = definitions(empty)
    with pytest.raises(Exception, match="already exists"):
        upgrade(empty)
    assert definitions(empty) == before


def test_a_downgrade_to_base_drops_every_table_and_an_upgrade_makes_them_again(
    empty: Engine,
) -> None:
    first = upgrade(empty)
    downgrade(empty)
    assert definitions(empty) == {}
    with empty.connect() as connection:
        assert current(connection) == []
    assert upgrade(empty) == first
    assert differences(empty, METADATA) == []


def test_every_migration_is_packaged_with_the_program() -> None:
    config = migrations._config()
    packages = [Path(str(package.__file__)).parent for package in (cos_events, workers)]
    known = {Path(each.path) for each in ScriptDirectory.from_config(config).walk_revisions()}
    found = {
        path
        for package in packages
        for path in package.rglob("migrations/**/*.py")
        if path.name not in {"__init__.py", "env.py"}
    }
    assert {path.resolve() for path in known} == {path.resolve() for path in found}
    assert len(found) >= 2


def test_the_workers_migrations_are_found_by_an_entry_point() -> None:
    found = {each.name: each.value for each in entry_points(group="cos_events.migrations")}
    assert found["workers"] == "workers:migrations"


def test_an_installed_packages_migrations_are_its_own_whatever_else_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, application = tmp_path / "site", tmp_path / "application"
    for root in (site, application):
        (root / "parcels" / "migrations").mkdir(parents=True)
        (root / "parcels" / "__init__.py").touch()
    about = site / "parcels-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: parcels\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[cos_events.migrations]\nparcels = parcels:migrations\n"
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(application)
    locations = str(migrations._config().get_main_option("version_locations")).splitlines()
    assert str(site / "parcels" / "migrations") in locations
    assert not any("application" in each or each == "parcels:migrations" for each in locations)
