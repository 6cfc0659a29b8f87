"""A system that has no thread to give at opting in: it is said, nothing changes, and opting out
works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.asking import PASSWORD
from support.hubs import Hub
from support.machine import wait_for
from support.programs import end
from support.sharing import at_hub, change, connected, see, tell

Make = Callable[..., Any]
ENABLE, SETTINGS = "/api/federation/enable", "/api/federation/settings"
NO_THREADS = """
import threading
start = threading.Thread.start
def scarce(thread):
    if thread.name == "federation" and pathlib.Path("scarce").exists():
        raise RuntimeError("can't start new thread")  # as Python does where the system has none
    start(thread)
threading.Thread.start = scarce
"""


def test_without_a_thread_opting_in_is_refused_and_changes_nothing(
    hub: Make, stepped: Make
) -> None:
    made: Hub = hub()
    program = stepped(NO_THREADS, **at_hub(made)).start()
    (program.folder / "scarce").touch()
    before = see(program, "settings")
    for method, path, body in (
        ("POST", ENABLE, None),
        ("PUT", SETTINGS, {"enabled": True, "shareTasks": False}),
    ):
        answer = tell(program, method, path, body, X_Task_Data_Password=PASSWORD)
        assert answer.status == 503
        assert "thread cannot be started" in answer.json["error"]
        assert "is off" in answer.json["error"]
        assert see(program, "settings") == before
        assert see(program, "status")["status"] == "off"
    assert tell(program, "POST", "/api/federation/disable").status == 200
    (program.folder / "scarce").unlink()
    change(program, "enable")
    connected(program)
    end(program)
    assert "Traceback" not in program.log.read_text()


def test_where_the_thread_cannot_begin_anew_it_is_said_to_fail_and_opting_out_works(
    hub: Make, stepped: Make
) -> None:
    made: Hub = hub()
    program = stepped(NO_THREADS, **at_hub(made)).start()
    change(program, "enable")
    connected(program)
    before = see(program, "settings")
    (program.folder / "scarce").touch()
    other = {"natsServers": ["nats://127.0.0.1:2"]}
    answer = tell(program, "PUT", SETTINGS, other, X_Task_Data_Password=PASSWORD)
    assert answer.status == 503 and "is not connected" in answer.json["error"]
    assert see(program, "settings") == before
    status = see(program, "status")
    assert (status["status"], status["consentedTo"]) == ("failing", [made.url])
    assert "thread cannot be started" in status["lastError"]
    assert tell(program, "POST", "/api/federation/disable").status == 200
    assert see(program, "status")["status"] == "off"
    wait_for(lambda: made.monitors() == [])
    end(program)


def test_a_reset_without_a_thread_leaves_the_federation_off(hub: Make, stepped: Make) -> None:
    program = stepped(NO_THREADS, **at_hub(hub())).start()
    change(program, "enable")
    connected(program)
    (program.folder / "scarce").touch()
    answer = tell(program, "POST", "/api/federation/reset", X_Task_Data_Password=PASSWORD)
    assert answer.status == 503 and "is off" in answer.json["error"]
    assert see(program, "status")["status"] == "off"
    assert see(program, "settings")["nodeId"] is None
    end(program)
