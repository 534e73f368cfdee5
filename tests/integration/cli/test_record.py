"""`record`: every good line is recorded once, every other one is reported and kept."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from cos_events.l1 import BaseLog, EventLog
from cos_events.store.models import OutboxRow

Cli = Callable[..., Result]

BAD = {
    "not JSON": b'{"event_type": "event_log", ',
    "no object": b"[1, 2]",
    "wrong event type": b'{"event_type": "gossip", "data": {}}',
    "wrong type": b'{"event_type":"event_log","data":{"level":7,"component":"c","message":"m"}}',
    "missing field": b'{"event_type": "event_log", "data": {"level": "INFO", "component": "c"}}',
    "unknown field": b'{"event_type": "event_log", "data": {}, "when": "now"}',
    "naive time": b'{"event_type":"event_log","data":{"level":"","component":"","message":""},'
    b'"occurred_at":"2025-06-18T10:30:00"}',
    "time out of range": b'{"event_type":"event_log","data":{"level":"","component":"",'
    b'"message":""},"occurred_at":"0001-01-01T00:00:00+14:00"}',
    "NUL": b'{"event_type":"event_log","data":{"level":"","component":"","message":"a\\u0000b"}}',
    "NUL in a key that looks like markup": b'{"event_type":"event_log","data":{"level":"",'
    b'"component":"","message":"","[/b]":"\\u0000"}}',
    "raw NUL": b'{"event_type":"event_log","data":{"level":"","component":"","message":"\x00"}}',
    "lone surrogate": b'{"event_type":"event_log","data":{"level":"","component":"",'
    b'"message":"\\ud800"}}',
    "invalid UTF-8": b'{"event_type":"event_log","data":{"level":"","component":"",'
    b'"message":"\xff"}}',
    "too large": b'{"event_type":"event_log","data":{"level":"","component":"","message":"%s"}}'
    % (b"x" * 300_000),
    "too deep": b'{"event_type":"event_log","data":{"level":"","component":"","message":"",'
    b'"a":%s%s}}' % (b"[" * 5_000, b"]" * 5_000),
    "infinity": b'{"event_type":"prompt_trace","data":{"prompt":"","response":"","model":"",'
    b'"tokens_in":1,"tokens_out":1,"latency_ms":1e999}}',
    "count too large": b'{"event_type":"prompt_trace","data":{"prompt":"","response":"",'
    b'"model":"","tokens_in":9223372036854775808,"tokens_out":1,"latency_ms":1}}',
}


def line(number: int) -> bytes:
    data = {"level": "INFO", "component": "tests", "message": f"number {number}"}
    return json.dumps({"event_type": "event_log", "data": data}).encode()


@pytest.fixture
def file(tmp_path: Path, database: Engine) -> Path:
    return tmp_path / "lines.jsonl"


@pytest.fixture
def recorded(database: Engine) -> Callable[[], list[str]]:
    """The messages in L1, in order of recording; each of them has one event."""

    def read() -> list[str]:
        with Session(database) as session:
            found = (
                select(EventLog.message)
                .join(BaseLog)
                .join(OutboxRow, OutboxRow.event_id == BaseLog.id)
            )
            messages = list(session.scalars(found.order_by(OutboxRow.id)))
            for table in (BaseLog, OutboxRow):
                assert session.scalar(select(func.count()).select_from(table)) == len(messages)
        return messages

    return read


def numbers(*which: int) -> list[str]:
    return [f"number {number}" for number in which]


def test_every_line_of_a_file_is_recorded(
    file: Path, cli: Cli, recorded: Callable[[], list[str]]
) -> None:
    file.write_bytes(b"\n".join(map(line, range(250))))
    result = cli("record", file)
    assert (result.exit_code, result.output) == (0, "250 recorded, 0 refused\n")
    assert recorded() == numbers(*range(250))
    assert list(file.parent.iterdir()) == [file]


def test_what_a_line_says_is_what_the_record_holds(file: Path, cli: Cli, database: Engine) -> None:
    trace = {
        "event_type": "prompt_trace",
        "data": {
            "prompt": "p",
            "response": "r",
            "model": "m",
            "tokens_in": 1,
            "tokens_out": 2,
            "latency_ms": 3.5,
            "team": "blue",
        },
        "occurred_at": "2025-06-18T12:30:00+02:00",
        "request_id": "r1",
        "trace_id": "t1",
        "module": "ops",
    }
    file.write_text(json.dumps(trace))
    assert cli("record", file).exit_code == 0
    with Session(database) as session:
        log = session.scalars(select(BaseLog)).one()
        assert (log.source_module, log.request_id, log.trace_id) == ("ops", "r1", "t1")
        assert log.occurred_at.isoformat() == "2025-06-18T10:30:00+00:00"
        assert (log.prompt_trace.tokens_out, log.prompt_trace.latency_ms) == (2, 3.5)
        assert log.prompt_trace.attributes == {"team": "blue"}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_line_is_reported_and_kept_and_the_others_are_recorded(
    reason: str, file: Path, cli: Cli, recorded: Callable[[], list[str]]
) -> None:
    file.write_bytes(b"\n".join([line(1), BAD[reason], line(3)]))
    result = cli("record", file)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert result.stdout == "2 recorded, 1 refused\n"
    assert re.findall(r"^line (\d+): ", result.stderr, re.MULTILINE) == ["2"]
    kept = file.with_name("lines.jsonl.bad.jsonl")
    assert kept.read_bytes() == BAD[reason] + b"\n"
    assert recorded() == numbers(1, 3)


def test_bad_lines_are_kept_in_order_byte_for_byte_where_told(
    file: Path, tmp_path: Path, cli: Cli, recorded: Callable[[], list[str]]
) -> None:
    bad = [b"no \r json\r", b"\xef\xbb\xbf{}", b"  [\xff] \t"]
    file.write_bytes(b"\n".join([bad[0], line(2), bad[1], b"", line(5), bad[2]]) + b"\n")
    keep = tmp_path / "elsewhere.jsonl"
    result = cli("record", file, "--rejects", keep, "--batch", 2)
    assert result.exit_code == 1
    assert re.findall(r"^line (\d+): ", result.stderr, re.MULTILINE) == ["1", "3", "6"]
    assert keep.read_bytes() == b"".join(each + b"\n" for each in bad)
    assert recorded() == numbers(2, 5)
    again = cli("record", keep, "--rejects", tmp_path / "again.jsonl")
    assert again.stdout == "0 recorded, 3 refused\n"
    assert (tmp_path / "again.jsonl").read_bytes() == keep.read_bytes()


def test_why_a_line_is_refused_is_said_in_full(file: Path, cli: Cli) -> None:
    file.write_bytes(
        b'{"event_type":"event_log","data":{"level":"","component":"","message":"","[b]":"\\u0000"}}'
    )
    said = " ".join(cli("record", file).stderr.split())
    assert "line 1: cannot record this event: data.attributes.[b] holds a NUL character" in said


def test_standard_input_is_read_as_a_file_is(
    tmp_path: Path,
    database: Engine,
    run_program: Callable[..., subprocess.CompletedProcess[str]],
    recorded: Callable[[], list[str]],
) -> None:
    keep = tmp_path / "refused.jsonl"
    lines = "\n".join([line(1).decode(), "no json", line(3).decode()])
    done = run_program("record", "-", "--json", "--rejects", keep, stdin=lines)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"recorded": 2, "refused": 1, "rejects": str(keep)}
    assert "line 2: " in done.stderr
    assert keep.read_text() == "no json\n"
    assert recorded() == numbers(1, 3)


def test_refused_lines_of_standard_input_are_kept_in_the_working_folder(
    tmp_path: Path, database: Engine
) -> None:
    program = [sys.executable, "-m", "cos_events", "record", "-"]
    done = subprocess.run(program, input=b"no json", cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 1
    assert (tmp_path / "stdin.bad.jsonl").read_bytes() == b"no json\n"
    assert b"stdin.bad.jsonl" in done.stderr


@pytest.mark.parametrize("content", [b"", b"\n", b"\n  \n\t\r\n"])
def test_nothing_to_record_is_no_mistake(
    content: bytes, file: Path, cli: Cli, recorded: Callable[[], list[str]]
) -> None:
    file.write_bytes(content)
    result = cli("record", file, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"recorded": 0, "refused": 0, "rejects": None}
    assert recorded() == []


def test_refused_lines_that_could_not_be_kept_stop_it_before_it_begins(
    file: Path, recorded: Callable[[], list[str]], cli: Cli, tmp_path: Path
) -> None:
    file.write_bytes(line(0))
    rejects = tmp_path / "nowhere" / "bad.jsonl"
    result = cli("record", file, "--rejects", rejects)
    assert result.exit_code == 2
    assert f"{rejects} cannot be written" in " ".join(result.output.split())
    assert recorded() == []


def test_a_file_that_is_not_there_is_named(database: Engine, cli: Cli) -> None:
    result = cli("record", "/nowhere/at-all.jsonl")
    assert result.exit_code == 2
    assert "/nowhere/at-all.jsonl" in result.output


@pytest.mark.parametrize(("batch", "transactions"), [(1, 5), (2, 3), (5, 1), (100, 1)])
def test_a_batch_is_one_transaction(
    batch: int, transactions: int, file: Path, cli: Cli, database: Engine
) -> None:
    file.write_bytes(b"\n".join(map(line, range(5))))
    assert cli("record", file, "--batch", batch).exit_code == 0
    with database.connect() as connection:
        seen = connection.scalar(text("SELECT count(DISTINCT xmin::text) FROM cos_events.outbox"))
    assert seen == transactions


def test_lines_before_the_first_one_asked_for_are_skipped(
    file: Path, cli: Cli, recorded: Callable[[], list[str]]
) -> None:
    file.write_bytes(b"\n".join([b"no json", line(2), line(3), b"", line(5)]))
    result = cli("record", file, "--from-line", 3)
    assert (result.exit_code, result.stdout) == (0, "2 recorded, 0 refused\n")
    assert recorded() == numbers(3, 5)


def test_a_connection_that_dies_midway_leaves_a_line_to_go_on_from(
    file: Path,
    cli: Cli,
    sentence: Callable[[Result], str],
    database: Engine,
    recorded: Callable[[], list[str]],
) -> None:
    """The server ends the connection that writes line 8, as one that is shut down would."""
    with database.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "IF NEW.message = 'number 8' THEN "
                "PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NEW; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE TRIGGER die BEFORE INSERT ON mem0_cc.event_log "
                "FOR EACH ROW EXECUTE FUNCTION die()"
            )
        )
    file.write_bytes(b"\n".join([line(1), line(2), b"bad", *map(line, range(4, 8)), b"bad too"]))
    with file.open("ab") as more:
        more.write(b"\n" + line(8) + b"\n" + line(9))
    result = cli("record", file, "--batch", 3)
    said = sentence(result)
    assert "stopped before line 7" in said
    assert said.endswith("continue with --from-line 7")
    assert recorded() == numbers(1, 2, 4, 5, 6)
    kept = file.with_name("lines.jsonl.bad.jsonl")
    assert kept.read_bytes() == b"bad\n"
    with database.begin() as connection:
        connection.execute(text("DROP TRIGGER die ON mem0_cc.event_log"))
    again = cli("record", file, "--batch", 3, "--from-line", 7)
    assert again.stdout == "3 recorded, 1 refused\n"
    assert recorded() == numbers(1, 2, 4, 5, 6, 7, 8, 9)
    assert kept.read_bytes() == b"bad\nbad too\n"


def test_events_of_any_type_are_recorded_without_l1(cli: Cli, file: Path, database: Engine) -> None:
    order: dict[str, object] = {
        "module": "shop",
        "event_type": "order_placed",
        "data": {"number": 7},
    }
    order["occurred_at"] = "2026-11-30T10:30:00+00:00"
    given = [json.dumps(order).encode(), BAD["unknown field"], BAD["too deep"], BAD["NUL"]]
    given += [line(1), json.dumps({**order, "event_type": "Order Placed"}).encode()]
    file.write_bytes(b"\n".join(given))
    result = cli("record", "--events-only", file)
    assert result.exit_code == 1
    assert "2 recorded, 4 refused" in result.output
    assert "line 6: event_type" in result.output
    with Session(database) as session:
        placed, logged = session.scalars(select(OutboxRow).order_by(OutboxRow.id))
        assert session.scalar(select(func.count()).select_from(BaseLog)) == 0
    assert (placed.source_module, placed.event_type) == ("shop", "order_placed")
    assert json.loads(placed.envelope)["data"] == {"number": 7}
    assert json.loads(placed.envelope)["timestamp"] == "2026-11-30T10:30:00.000000Z"
    assert logged.event_type == "event_log"
