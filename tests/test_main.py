"""The program as its operator meets it: command line, start, end, doctor, healthcheck and demo."""

from __future__ import annotations

import contextlib
import functools
import http.server
import itertools
import json
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from support import ROOT
from support.engine import Node
from support.machine import wait_for
from support.node_words import header
from support.programs import PROGRAM, SIGNALS, Make, Program, begin, has_handlers
from support.programs import made_over_files as over_files

import tbmon

NO_ENGINE = "unix:///nonexistent.sock"


def run(
    program: Program, *words: str, python: tuple[str, ...] = (), **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end with its environment and return what it said."""
    command, env = (sys.executable, *python, PROGRAM, *words), {**program.env, **settings}
    return subprocess.run(
        command, env=env, cwd=program.folder, capture_output=True, text=True, timeout=20
    )


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr with which the program refuses to start."""
    assert (done.returncode, done.stdout) == (2, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("tbmon: ") and "Traceback" not in line
    return line


# The command line


def test_version_is_told(program: Make) -> None:
    done = run(program(), "--version")
    assert (done.returncode, done.stdout) == (0, f"tbmon {tbmon.__version__}\n")


def test_help_names_every_setting_and_every_command(program: Make) -> None:
    done = run(program(), "--help")
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    for item in fields(tbmon.Config):
        assert item.metadata["help"] in lines[item.name.upper()]
    assert all(command in done.stdout for command in ("serve", "demo", "doctor", "healthcheck"))


@pytest.mark.parametrize("words", [("nonsense",), ("serve", "more"), ("--nonsense",)])
def test_an_unknown_command_is_refused(program: Make, words: tuple[str, ...]) -> None:
    done = run(program(), *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert words[-1] in done.stderr and "usage" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["serve", "demo", "doctor", "healthcheck"])
def test_one_message_names_every_bad_setting(program: Make, command: str) -> None:
    bad = {
        "PORT": "x",
        "LOG_RETENTION_DAYS": "0",
        "NODE_TIMEZONE": "Mars/Base",
        "NODE_ENV": "test",
        "MAX_DB_BYTES": "1G",
        "DOCKER_HOST": "ssh://host",
        "CONTAINER_NAME": "a b",
        "DOCKER_TLS_VERIFY": "maybe",
        "API_KEY_FILE": "/no/file",
    }
    one = program(**bad)
    done = run(one, command)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "tbmon: bad settings:" and len(lines) == 1 + len(bad)
    assert {re.split("[=:]", line.strip())[0] for line in lines[1:]} == set(bad)
    assert names_in(one.folder) == set()


@pytest.mark.parametrize("host", ["tcp://127.0.0.1:x", "tcp://127.0.0.1:99999", "tcp://[::1"])
def test_an_engine_address_without_a_right_port_is_a_bad_setting(program: Make, host: str) -> None:
    done = run(program(DOCKER_HOST=host), "doctor")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "DOCKER_HOST" in done.stderr


@pytest.mark.parametrize("command", ["serve", "demo", "doctor"])
def test_missing_packages_are_told_in_one_sentence(program: Make, command: str) -> None:
    said = sentence(run(program(), command, python=("-I", "-S")))
    assert all(name in said for name in ("bottle", "waitress", "docker", "requirements.txt"))


@pytest.mark.parametrize(
    ("words", "code"), [(("--version",), 0), (("--help",), 0), (("healthcheck",), 1)]
)
def test_what_needs_no_package_works_without(
    program: Make, words: tuple[str, ...], code: int
) -> None:
    done = run(program(), *words, python=("-I", "-S"))
    assert (done.returncode, done.stderr) == (code, "")


# What keeps it from starting


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"HOST": "203.0.113.7"}, "HOST"),
        ({"HOST": "nonsense.invalid"}, "HOST"),
        ({"DB_PATH": "/tmp"}, "/tmp"),
        ({"DB_PATH": "/proc/none/t.db"}, "/proc/none"),
        ({"KEY_DIR": PROGRAM}, PROGRAM),
        (
            {
                "LOG_DIR": "",
                "DOCKER_HOST": "tcp://127.0.0.1:9",
                "DOCKER_TLS_VERIFY": "1",
                "DOCKER_CERT_PATH": "/none",
            },
            "DOCKER_CERT_PATH",
        ),
    ],
)
def test_what_cannot_be_had_is_told_in_one_sentence(
    program: Make, settings: dict[str, str], words: str
) -> None:
    one = over_files(program)
    one.env |= settings
    assert words in sentence(run(one))


def test_a_second_tbmon_on_the_same_database_is_refused(program: Make) -> None:
    first, second = over_files(program).start(), over_files(program)
    second.env["DB_PATH"] = first.env["DB_PATH"]
    assert "another tbmon" in sentence(run(second))
    assert first.answers()
    assert first.end() == 0
    assert run(second, "healthcheck").returncode == 1
    assert second.start().answers()


def test_a_port_in_use_is_told_and_the_database_stays_usable(program: Make) -> None:
    one = over_files(program)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        assert taken in sentence(run(one, PORT=taken))
    assert one.start().answers()


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_the_database_of_the_original_is_left_byte_for_byte(program: Make, journal: str) -> None:
    one = over_files(program)
    with contextlib.closing(sqlite3.connect(one.env["DB_PATH"])) as theirs:
        theirs.execute(f"PRAGMA journal_mode = {journal}")
        theirs.execute("CREATE TABLE tasks (id INTEGER PRIMARY KEY, status TEXT)")
        theirs.execute("INSERT INTO tasks (status) VALUES ('completed')")
        theirs.commit()
        before = {path.name: path.read_bytes() for path in one.folder.glob("t.db*")}
        said = sentence(run(one))
        assert run(one, "doctor").returncode == 1
        assert {path.name: path.read_bytes() for path in one.folder.glob("t.db*")} == before
    assert "DB_PATH" in said and one.env["DB_PATH"] in said


def test_a_file_that_is_no_database_is_left_as_it_is(program: Make) -> None:
    one = over_files(program)
    Path(one.env["DB_PATH"]).write_bytes(b"my diary")
    assert "DB_PATH" in sentence(run(one))
    assert Path(one.env["DB_PATH"]).read_bytes() == b"my diary"


# Start and end


def end_soon_after_start(one: Program, number: int, delays: tuple[float, ...]) -> None:
    for delay in delays:
        begin(one)
        wait_for(lambda: has_handlers(one))
        threading.Event().wait(delay)
        asked = time.monotonic()
        assert (one.end(number), time.monotonic() - asked < 10) == (0, True), (
            delay,
            one.log.read_text(),
        )
    said = one.log.read_text()
    assert "Traceback" not in said and "CRITICAL" not in said
    assert [name for name in names_in(one.folder) if "damaged" in name] == []


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_end_it_well_from_the_start_on_with_log_files(program: Make, number: int) -> None:
    one = over_files(program)
    lines = "".join(
        header(f"line {count}", time.time() - 9000 + count) + "\n" for count in range(8_000)
    )
    (one.folder / "logs" / "worker-2026-01-01.log").write_text(lines)
    end_soon_after_start(one, number, (0.0, 0.02, 0.1, 0.5))


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_end_it_well_from_the_start_on_with_a_container(
    node: Node, program: Make, number: int
) -> None:
    node.run()
    node.say(header("Starting services"))
    end_soon_after_start(program(CONTAINER_NAME=node.name), number, (0.0, 0.3))


def test_a_signal_ends_it_while_the_engine_never_answers(program: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as engine:
        one = program(DOCKER_HOST=f"tcp://127.0.0.1:{engine.getsockname()[1]}").start()
        assert one.get("/health")[1]["docker"] == "disconnected"
        asked = time.monotonic()
        assert (one.end(), time.monotonic() - asked < 10) == (0, True)


class Cut(sqlite3.Connection):
    """A connection that is cut by a signal after some statements."""

    left = 0

    def execute(self, *given: Any) -> sqlite3.Cursor:
        Cut.left -= 1
        if Cut.left < 0:
            raise SystemExit(0)
        return super().execute(*given)


@pytest.mark.parametrize("statements", range(9))
def test_a_first_start_that_is_cut_short_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statements: int
) -> None:
    Cut.left = statements
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Cut))
        tbmon.Store(tmp_path / "t.db", b"k" * 32)
    with contextlib.closing(tbmon.Store(tmp_path / "t.db", b"k" * 32)) as store:
        assert [row[0] for row in store.read("PRAGMA auto_vacuum")] == [2]  # incremental
    assert [path for path in names_in(tmp_path) if "damaged" in path] == []


CUT = """
import tbmon
real = tbmon.start_thread
def start_thread(*given):
    real(*given)
    raise SystemExit(0)  # as a signal does that comes at this moment
tbmon.start_thread = start_thread
tbmon.main(["serve"])
"""


def test_a_signal_between_the_threads_does_not_condemn_the_database(program: Make) -> None:
    one = over_files(program, PYTHONPATH=str(ROOT))
    lines = "".join(
        header(f"line {count}", time.time() - 9000 + count / 5) + "\n" for count in range(20_000)
    )
    (one.folder / "logs" / "worker-2026-01-01.log").write_text(lines)
    assert begin(one, "-c", CUT).process.wait(15) == 0
    assert "CRITICAL" not in one.log.read_text()
    assert [name for name in names_in(one.folder) if "damaged" in name] == []


def test_it_can_be_started_from_python_too(program: Make) -> None:
    one = over_files(program, PYTHONPATH=str(ROOT))
    begin(one, "-c", 'import sys, tbmon; sys.exit(tbmon.main(["serve"]))')
    wait_for(one.answers)
    assert one.end() == 0


DEATHS = [  # what is broken, and what the log must tell
    ("tbmon.prune = lambda monitor: 1 / 0", "ZeroDivisionError"),
    ("tbmon.set_verdict = lambda monitor: [][1]", "IndexError"),
    ("tbmon.DirectoryFollower.step = lambda self: {}['x']", "KeyError"),
    ("tbmon.DirectoryFollower.__init__ = lambda self, monitor: int('x')", "ValueError"),
]


@pytest.mark.parametrize(("line", "error"), DEATHS)
def test_a_thread_that_dies_of_a_bug_ends_the_process(program: Make, line: str, error: str) -> None:
    one = over_files(program, PYTHONPATH=str(ROOT))
    begin(one, "-c", f'import sys, tbmon; {line}; sys.exit(tbmon.main(["serve"]))')
    assert one.process.wait(15) == 1
    said = one.log.read_text()
    assert "Traceback" in said and error in said and "CRITICAL" in said


def raising(error: str, first: str = "") -> str:
    """A program in which the upkeep thread meets this error of SQLite, after what is to be done
    first.
    """
    return f"""
import sqlite3, sys, tbmon
def fail(monitor):
    {first}
    raise sqlite3.{error}("told by the test")
tbmon.set_verdict = fail
sys.exit(tbmon.main(["serve"]))
"""


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        ("DatabaseError", False),
        ("OperationalError", True),
        ("ProgrammingError", True),
        ("IntegrityError", True),
    ],
)
def test_only_a_damaged_database_is_moved_aside_at_the_next_start(
    program: Make, error: str, kept: bool
) -> None:
    one = over_files(program, PYTHONPATH=str(ROOT))
    assert begin(one, "-c", raising(error)).process.wait(15) == 1
    assert one.start().answers()
    assert ([name for name in names_in(one.folder) if "t.db.damaged-" in name] == []) is kept


def test_a_file_whose_damage_is_met_while_stopping_is_moved_aside_at_the_next_start(
    program: Make,
) -> None:
    one = over_files(program, PYTHONPATH=str(ROOT))
    begin(one, "-c", raising("DatabaseError", "monitor.stop.wait()"))
    wait_for(one.answers)
    assert one.end() == 0
    assert one.start().answers()
    assert list(one.folder.glob("t.db.damaged-*Z")) and "Traceback" not in one.log.read_text()


@pytest.mark.parametrize("place", [0, 4096, "cut", "all"])
def test_a_database_damaged_while_it_was_stopped_is_moved_aside(
    program: Make, place: int | str
) -> None:
    one = over_files(program).start()
    assert one.end() == 0
    path = Path(one.env["DB_PATH"])
    content = bytearray(path.read_bytes())
    if isinstance(place, int):
        content[place : place + 4000] = b"\xa5" * 4000
    path.write_bytes(
        content if isinstance(place, int) else content[:5000] if place == "cut" else b"\xa5" * 9000
    )
    damaged = path.read_bytes()
    assert one.start().answers()
    (moved,) = one.folder.glob("t.db.damaged-*Z")
    assert moved.read_bytes()[100:] == damaged[100:]  # the header is SQLite's to touch
    assert "damaged" in one.log.read_text() and one.get("/api/tasks")[0] == 200


def make_odd(path: Path, value: str = "NULL") -> None:
    """Give a row a shape that nobody writes."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(f"INSERT OR REPLACE INTO node (name, value, at) VALUES ('version', {value}, 1)")


def damage_unread_page(path: Path) -> None:
    """Overwrite a page of which no answer and no thread reads anything."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        (number,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'sent'").fetchone()
    with path.open("r+b") as file:
        file.seek(4096 * (number - 1))
        file.write(b"\xa5" * 4096)


def test_rows_of_an_odd_shape_are_damage_where_the_file_is_damaged(program: Make) -> None:
    one = over_files(program).start()
    make_odd(Path(one.env["DB_PATH"]))
    damage_unread_page(Path(one.env["DB_PATH"]))
    with contextlib.suppress(OSError):  # it may be ending already
        unreadable = {"error": "the database cannot be read now: the file is damaged"}
        assert one.get("/api/status") == (503, unreadable)
    assert one.process.wait(10) == 1
    assert one.start().answers()
    assert list(one.folder.glob("t.db.damaged-*Z")) and "Traceback" not in one.log.read_text()


def test_a_text_that_is_no_text_is_damage_and_nobody_is_told_it(program: Make) -> None:
    one = over_files(program).start()
    make_odd(Path(one.env["DB_PATH"]), "CAST(x'70617373FF' AS TEXT)")
    with contextlib.suppress(OSError):  # it may be ending already
        unreadable = {"error": "the database cannot be read now: a text in it is not UTF-8"}
        assert one.get("/api/status") == (503, unreadable)
    assert one.process.wait(10) == 1
    assert one.start().answers()
    assert list(one.folder.glob("t.db.damaged-*Z")) and "pass" not in one.log.read_text()


def test_rows_of_an_odd_shape_in_a_sound_file_are_a_bug(program: Make) -> None:
    one = over_files(program).start()
    make_odd(Path(one.env["DB_PATH"]))
    status, said = one.get("/")  # of the API's paths none promises a 500
    assert (status, said) == (500, {"error": "tbmon made a mistake here; its log says more"})
    assert "Traceback" in one.log.read_text() and not list(one.folder.glob("t.db-damaged"))


class Nonsense(http.server.BaseHTTPRequestHandler):
    """An engine whose answers stop making sense where the container is concerned."""

    status, body = 200, b""

    def do_GET(self) -> None:
        version = b'{"ApiVersion": "1.43", "Version": "24"}'
        body = version if self.path.endswith("/version") else self.body
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def nonsense_engine(body: bytes, status: int = 200) -> Iterator[str]:
    """Serve `body` for all but the version; gives the engine's address."""
    handler = type("Handler", (Nonsense,), {"body": body, "status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"tcp://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


RUNNING = {"Id": "ab" * 32, "Name": "/runner-node", "State": {"Status": "running", "Running": True}}


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", json.dumps(RUNNING).encode()])
def test_no_answer_of_an_engine_ends_the_program(program: Make, body: bytes) -> None:
    with nonsense_engine(body) as url:
        one = program(DOCKER_HOST=url).start()
        wait_for(lambda: "verdict" in one.log.read_text(), 5)
        assert (run(one, "doctor").stderr, one.process.poll(), one.answers()) == ("", None, True)
        assert one.end() == 0
    assert "Traceback" not in one.log.read_text()


# Secrets


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_keys_are_private_and_the_password_is_made_once_and_shown(program: Make) -> None:
    one = over_files(program)
    del one.env["TASK_DATA_PASSWORD"]
    shown = []
    for _ in range(2):
        assert one.start().end() == 0
        shown = re.findall("INFO \N{KEY} .*: (\\S+)$", one.log.read_text(), re.M)
    assert len(shown) == 2 and shown[0] == shown[1] and len(shown[0]) >= 20
    one.start()
    assert one.get("/api/logs")[0] == 401
    assert one.get("/api/logs", X_Task_Data_Password=shown[0])[0] == 200
    kept = {
        path.name: mode(path)
        for path in one.folder.iterdir()
        if path.suffix in (".key", ".password", ".db")
    }
    assert kept == {"local.key": 0o600, "task-data.password": 0o600, "t.db": 0o600}


def test_key_dir_takes_the_keys_and_another_installation_has_others(program: Make) -> None:
    ones = [over_files(program), over_files(program)]
    for one in ones:
        del one.env["TASK_DATA_PASSWORD"]
        one.env["KEY_DIR"] = str(one.folder / "keys")
        assert one.start().end() == 0
        assert names_in(one.folder / "keys") == {"local.key", "task-data.password"}
    assert (
        len({(one.folder / "keys" / name).read_bytes() for one in ones for name in ("local.key",)})
        == 2
    )


@pytest.mark.parametrize("content", [b"", b"\n", b"  \r\n"])
def test_an_empty_password_file_opens_nothing(program: Make, content: bytes) -> None:
    one = over_files(program)
    del one.env["TASK_DATA_PASSWORD"]
    (one.folder / "task-data.password").write_bytes(content)
    one.start()
    if one.process.poll() is None:
        assert [
            one.get("/api/logs", **given)[0] for given in ({}, {"X_Task_Data_Password": ""})
        ] == [401, 401]
    else:
        assert one.process.returncode == 2 and "task-data.password" in one.log.read_text()


@pytest.mark.parametrize("password", ["of a file", "größe-λ"])
def test_the_password_may_come_from_a_file(program: Make, password: str) -> None:
    one = over_files(program)
    del one.env["TASK_DATA_PASSWORD"]
    one.env["TASK_DATA_PASSWORD_FILE"] = str(one.folder / "secret")
    (one.folder / "secret").write_text(password + "\n", "utf-8")
    one.start()
    sent = password.encode().decode("latin-1")
    assert [
        one.get("/api/logs", X_Task_Data_Password=given)[0] for given in (sent, sent + "x")
    ] == [200, 401]
    said = one.log.read_text()
    assert (
        password not in said
        and "\N{KEY}" not in said
        and not (one.folder / "task-data.password").exists()
    )


# Healthcheck and doctor


def test_healthcheck_tells_whether_tbmon_answers(program: Make) -> None:
    one = over_files(program)
    assert run(one, "healthcheck").returncode == 1
    one.start()
    done = run(one, "healthcheck")
    assert (done.returncode, done.stdout) == (0, "ok\n")
    assert one.end() == 0
    assert run(one, "healthcheck").returncode == 1


def test_healthcheck_knows_its_own_from_another_server(program: Make) -> None:
    with nonsense_engine(b"not found", 404) as url:
        done = run(program(PORT=url.rpartition(":")[2]), "healthcheck")
    assert (done.returncode, "404" in done.stdout, done.stderr) == (1, True, "")


def findings(done: subprocess.CompletedProcess[str]) -> Counter[str]:
    """How many lines of each level doctor wrote; every one that is not OK has a remedy."""
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    levels = Counter(line[:4].strip() for line in lines if not line.startswith("  "))
    assert sum(line.startswith("     -> ") for line in lines) == levels["FAIL"] + levels["WARN"]
    assert set(levels) <= {"OK", "WARN", "FAIL"}
    return levels


def test_doctor_finds_good_log_files_good_and_writes_nothing(program: Make) -> None:
    one = over_files(program)
    (one.folder / "logs" / "worker-2026-01-01.log").write_text(header("Starting services") + "\n")
    before = names_in(one.folder)
    done = run(one, "doctor")
    assert (done.returncode, findings(done)["FAIL"]) == (0, 0)
    assert findings(done)["OK"] >= 5 and "1 log file" in done.stdout
    assert names_in(one.folder) == before == {"logs", "logs/worker-2026-01-01.log"}


def test_doctor_beside_a_running_tbmon_finds_it(program: Make) -> None:
    one = over_files(program)
    (one.folder / "logs" / "worker-2026-01-01.log").write_text(header("Starting services") + "\n")
    one.start()
    done = run(one, "doctor")
    assert done.returncode == 0
    assert f"OK   tbmon answers on port {one.port}\n" in done.stdout


@pytest.mark.parametrize("logs", ["", "/none"])
def test_doctor_misses_log_files(program: Make, logs: str) -> None:
    one = over_files(program)
    one.env["LOG_DIR"] = logs or one.env["LOG_DIR"]
    done = run(one, "doctor")
    assert (done.returncode, findings(done)["FAIL"]) == (1, 1)
    assert "LOG_DIR" in done.stdout


def test_doctor_tells_what_to_do_when_nothing_can_be_had(program: Make) -> None:
    one = program(DOCKER_HOST=NO_ENGINE, DB_PATH="diary")
    (one.folder / "diary").write_bytes(b"my diary")
    with nonsense_engine(b"another server", 404) as other:
        done = run(one, "doctor", PORT=other.rpartition(":")[2])
    assert (done.returncode, findings(done)["FAIL"]) == (1, 3)
    for words in ("nonexistent.sock", "DOCKER_HOST", "DB_PATH", "PORT"):
        assert words in done.stdout
    assert names_in(one.folder) == {"diary"}


def test_doctor_reports_a_folder_in_the_databases_place(program: Make) -> None:
    one = program(DOCKER_HOST=NO_ENGINE, DB_PATH="there")
    (one.folder / "there").mkdir()
    done = run(one, "doctor")
    assert (done.returncode, findings(done)["FAIL"]) == (1, 2)


def test_doctor_finds_a_good_node_good(node: Node, program: Make) -> None:
    node.run()
    node.put("/app/build/datadb/any-eventDB.json", b'{"records": []}')
    for words in ("Starting services", "Heartbeat sent"):
        node.say(header(words))
    one = program(CONTAINER_NAME=node.name)
    done = wait_for(
        lambda: done if "2 of the last 2" in (done := run(one, "doctor")).stdout else None
    )
    assert (done.returncode, set(findings(done))) == (0, {"OK"})
    for words in (
        "engine",
        f"container {node.name} is running",
        "log driver",
        "2 of the last 2",
        "event database",
    ):
        assert re.search(f"^OK   .*{words}", done.stdout, re.M)
    assert names_in(one.folder) == set()


def test_doctor_warns_of_what_it_does_not_know_and_of_a_stopped_node(
    node: Node, program: Make
) -> None:
    node.run(script="for n in 1 2 3 4 5 6 7 8 9; do echo what is this; done")
    one = program(CONTAINER_NAME=node.name)
    done = wait_for(lambda: done if "exited" in (done := run(one, "doctor")).stdout else None)
    assert (done.returncode, findings(done)["WARN"]) == (
        0,
        3,
    )  # stopped, not recognised, no event database
    assert f"docker start {node.name}" in done.stdout and "0 of the last" in done.stdout


def test_doctor_fails_where_the_log_cannot_be_read(node: Node, program: Make) -> None:
    node.run("--log-driver", "none")
    done = run(program(CONTAINER_NAME=node.name), "doctor")
    assert (done.returncode, findings(done)["FAIL"]) == (1, 1)
    assert "log driver none" in done.stdout


def test_doctor_misses_a_container(engine: None, program: Make) -> None:
    done = run(program(CONTAINER_NAME="tbmon-test-none"), "doctor")
    assert (done.returncode, findings(done)["FAIL"]) == (1, 1)
    assert "CONTAINER_NAME" in done.stdout


# The demo


CONTAINER = {"id", "name", "state", "running", "startedAt", "image", "created", "restartCount"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A demo where there is no engine, with all of its past read."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "tmp").mkdir()
    one = Program(folder, DOCKER_HOST=NO_ENGINE, TMPDIR=str(folder / "tmp")).start("demo")
    wait_for(lambda: one.get("/api/status")[1]["stats"])
    yield one
    assert one.end() == 0
    assert names_in(folder) == {"tmp", "log.txt"}  # nothing is left of it


def test_the_demo_shows_tasks_of_every_fate(demo: Program) -> None:
    tasks = demo.get("/api/tasks?limit=1000")[1]["tasks"]
    assert {"completed", "failed", "lost"} <= {task["status"] for task in tasks}
    assert {"javascript", "rust", "python"} <= {task["task_type"] for task in tasks}
    assert {True, False} <= {task["cached"] for task in tasks}
    assert all((task["error"] is None) == (task["status"] != "failed") for task in tasks)
    summary = demo.get("/api/tasks/stats/summary")[1]
    assert summary["total"] > summary["tasks_24h"] > 10
    assert 50 < summary["success_rate"] < 100


def test_the_demo_shows_invoices_and_a_log_of_several_lines(demo: Program) -> None:
    invoices = demo.get("/api/invoices?limit=1000")[1]["invoices"]
    assert {"pay", "penalty"} == {invoice["operation"] for invoice in invoices}
    assert {item["account"] for item in invoices[0]["line_items"]} >= {"wallet:self"}
    assert "\n" in demo.private("/api/logs?type=execution_output&limit=1")["logs"][0]["message"]
    (received,) = demo.private("/api/logs?type=task_received&limit=1")["logs"]
    assert received["data"]["executionId"] == received["execution_id"]


LIVE = 1_800_000_000


def script(seconds: int, seed: int = 7) -> list[tuple[float, str]]:
    """All that a simulated node which starts at LIVE says until so many seconds later."""
    said = tbmon.SimulatedNode(LIVE, seed).script()
    return list(itertools.takewhile(lambda line: line[0] <= LIVE + seconds, said))


def test_the_simulated_node_repeats_itself_and_a_later_reader_finds_the_same() -> None:
    said = script(0)
    assert len(said) > 5000
    assert script(0) == said == script(1000)[: len(said)]
    assert script(0, seed=8) != said


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_the_simulated_log_is_in_order_of_time_and_reaches_from_days_ago_to_now(seed: int) -> None:
    said = script(0, seed)
    times = [at for at, _ in said]
    assert times == sorted(times)
    assert (times[0], LIVE - 120 <= times[-1] <= LIVE) == (LIVE - 3 * 86400, True)
    heads = [(at, text) for at, text in said if re.match(r"\d{4}-\d\d", text)]
    assert [text[:19] for _, text in heads] == [tbmon.second_text(int(at)) for at, _ in heads]
    assert len(heads) < len(said)  # some entries have several lines


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_live_tasks_come_within_a_minute_and_go_on(seed: int) -> None:
    tasks = [
        at - LIVE
        for at, text in script(3600, seed)
        if " Message received from task_created" in text
    ]
    live = [0.0, *(at for at in tasks if at > 0), 3600.0]
    assert live[1] < 60
    assert max(after - before for before, after in itertools.pairwise(live)) < 90


def test_the_demo_goes_on_as_its_clock_does(tmp_path: Path) -> None:
    store, now, failures = tbmon.Store(tmp_path / "t.db", b"k" * 32), [float(LIVE)], list[str]()
    monitor = tbmon.Monitor(
        tbmon.Config(),
        store,
        tbmon.Redactor(b"k" * 32),
        None,
        threading.Event(),
        clock=lambda: now[0],
        demo=True,
    )
    thread = tbmon.start_thread(monitor, "demo", tbmon.play_demo, failures)
    tasks: Callable[[], int] = lambda: int(store.read("SELECT COUNT(*) FROM task")[0][0])  # noqa: E731
    try:
        wait_for(lambda: monitor.problem is None)
        before = tasks()
        now[0] += 120
        wait_for(lambda: tasks() > before, 5)
    finally:
        monitor.stop.set()
        thread.join(5)
        store.close()
    assert before > 20 and failures == []


def test_the_demo_says_so_and_shows_a_working_node(demo: Program) -> None:
    wait_for(lambda: (demo.get("/api/status")[1]["verdict"] or {}).get("state") == "working")
    status = demo.get("/api/status")[1]
    assert (status["demo"], status["node"]["registered"]) == (True, True)
    assert set(status["container"]) == CONTAINER
    assert set(status["stats"]) == {"cpu", "memory"}
    assert set(status["stats"]["memory"]) == {"usage", "limit", "percent"}
    assert (len(status["container"]["id"]), status["container"]["running"]) == (12, True)
    assert demo.get("/health")[1]["docker"] == "disabled"
    assert demo.get("/api/logs/status")[1]["source"] == "demo"
    assert status["recognised"] > 0.98
