"""What a killed owner has left is reaped by the next one; what is another's is spared."""

import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cos_events.embedded import reap_orphans, servers
from cos_events.embedded.ownership import NOTE, read_owner

from .conftest import OwnerProcess, StartOwner, eventually, execute, servers_in, sleeper

every_owner = pytest.mark.parametrize(
    "code", [OwnerProcess.SERVERS, OwnerProcess.OWN_FOLDER], ids=["of servers", "of a folder"]
)


def left_by_a_killed(owner: StartOwner, *arguments: str) -> Path:
    """The folder of its servers, which still run."""
    killed = owner(*arguments)
    folder = killed.folder()
    killed.end(signal.SIGKILL)
    return folder


def test_the_servers_of_a_killed_owner_are_reaped_by_the_next_start(
    place: Path, owner: StartOwner
) -> None:
    folder = left_by_a_killed(owner)
    left = servers_in(folder)
    assert left != []
    with servers() as here:
        assert not folder.exists()
        assert servers_in(folder) == []
        assert servers_in(here.folder) != []


@every_owner
def test_reaping_counts_dead_owners_and_spares_live_ones(
    place: Path, owner: StartOwner, code: str
) -> None:
    live, killed = owner(code=code), owner(code=code)
    kept, left = live.folder(), killed.folder()
    killed.end(signal.SIGKILL)
    assert reap_orphans() == 1
    assert reap_orphans() == 0
    assert servers_in(kept) != []
    assert servers_in(left) == []


def test_an_owners_number_given_to_another_process_does_not_keep_its_servers_alive(
    place: Path, owner: StartOwner
) -> None:
    folder = left_by_a_killed(owner)
    noted = read_owner(folder)
    assert noted is not None
    recycled = replace(noted, process=replace(noted.process, pid=os.getpid()))
    (folder / NOTE).write_text(json.dumps(asdict(recycled)))
    assert reap_orphans() == 1


def test_a_foreign_process_with_a_servers_number_is_never_signalled(
    place: Path, owner: StartOwner
) -> None:
    folder = left_by_a_killed(owner, str(place / "kept"))
    for process in servers_in(folder):
        process.kill()
    eventually(lambda: servers_in(folder) == [])
    with sleeper() as foreign:
        for note in ("postgres/data/postmaster.pid", "valkey/data/valkey.pid"):
            lines = (folder / note).read_text().splitlines()
            (folder / note).write_text("\n".join([str(foreign.pid), *lines[1:]]))
        with servers(folder) as here:
            assert execute(here.database_url, "SELECT 1") == [(1,)]
        assert foreign.poll() is None
        foreign.kill()


@every_owner
def test_an_owner_in_another_container_is_told_by_its_lock(
    place: Path, owner: StartOwner, code: str
) -> None:
    elsewhere = owner(code=code)
    folder = elsewhere.folder()
    noted = read_owner(folder)
    assert noted is not None
    unknown = replace(noted.process, pid=2**22 + 1)
    (folder / NOTE).write_text(
        json.dumps(asdict(replace(noted, namespace="pid:[1]", process=unknown)))
    )
    assert reap_orphans() == 0
    elsewhere.end(signal.SIGKILL)
    assert reap_orphans() == 1


def test_another_users_folder_is_not_reaped(place: Path, owner: StartOwner) -> None:
    folder = left_by_a_killed(owner)
    folder.chmod(0o777)
    assert reap_orphans() == 0
    folder.chmod(0o700)
    assert reap_orphans() == 1
