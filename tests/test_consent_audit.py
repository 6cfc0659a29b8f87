"""The audit log: what changed from what to what, and that no flood hides it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.asking import PASSWORD
from support.hubs import Station
from support.programs import Program, end
from support.sharing import AWAY, change, tell

import tbmon

Make = Callable[..., Any]
OTHER = "nats://127.0.0.1:2"


def told(program: Program, event: str = "settings") -> list[str]:
    """What the audit log tells, oldest first."""
    entries = program.private("/api/audit-log?limit=1000")["entries"]
    return [one["detail"] for one in reversed(entries) if one["event"] == event]


def test_what_changed_is_told_from_what_to_what_and_the_hub_by_name(stepped: Make) -> None:
    program = stepped().start()
    change(program, "settings", {"privacyLevel": "minimal", "shareStats": False})
    change(program, "enable")
    change(program, "enable")  # changes nothing
    change(program, "settings", {"natsServers": [OTHER], "shareTasks": False})
    change(program, "settings", {"shareTasks": True, "natsServers": [OTHER]})
    change(program, "disable")
    assert told(program) == [
        "privacyLevel from balanced to minimal; shareStats from true to false",
        f"federation from off to on; consent from none to {AWAY}",
        f"hub from {AWAY} to {OTHER}; consent from {AWAY} to {OTHER}; shareTasks from true to false",
        "shareTasks from false to true",
        f"federation from on to off; consent from {OTHER} to none",
    ]
    end(program)


def test_consenting_to_another_hub_is_told(stepped: Make) -> None:
    program = stepped().start()
    change(program, "enable")
    end(program)
    program.env["FEDERATION_NATS_URL"] = OTHER
    program.start()
    change(program, "enable")
    assert told(program)[-1] == f"consent from {AWAY} to {OTHER}"
    end(program)


def test_a_reset_is_told_once_there_is_something_to_reset(stepped: Make) -> None:
    program = stepped().start()
    change(program, "reset")
    assert told(program) == []
    (program.folder / "federation.id").write_text("node-3f1d8a52-6c07-4e9b-a1d4-0b7c92e6f585")
    change(program, "reset")
    change(program, "reset")
    assert told(program) == ["reset: id and day keys deleted"]
    end(program)


def test_a_change_that_was_not_made_is_not_told(stepped: Make) -> None:
    program = stepped().start()
    assert tell(program, "POST", "/api/federation/enable").status == 401
    assert told(program) == []
    end(program)


def test_opting_in_during_a_flood_of_refusals_is_kept_and_they_are_counted(stepped: Make) -> None:
    program = stepped().start()
    for _ in range(tbmon.NOTES_A_MINUTE + 5):
        wrong = tell(program, "POST", "/api/federation/enable", X_Task_Data_Password="wrong")
        assert wrong.status == 401
    change(program, "enable")
    tell(program, "POST", "/api/auth/login", {"secret": PASSWORD})
    assert len(told(program, "refused")) == tbmon.NOTES_A_MINUTE
    assert told(program) == [
        f"federation from off to on; consent from none to {AWAY}"
        " (5 more refusals before it were not kept)"
    ]
    assert told(program, "login") == ["opened private"]
    end(program)


def test_refusals_push_no_other_event_out_of_the_log(station: Make) -> None:
    here: Station = station(AWAY)
    events = ["settings"] + ["refused"] * (tbmon.AUDIT_ROWS + 7)
    with here.store.write() as db:
        rows = ((number, event, "a", "b") for number, event in enumerate(events))
        here.store.put(db, "audit", rows)
    here.store.prune(0, 2**40)
    kept = here.store.read("SELECT event, COUNT(*) AS n FROM audit GROUP BY event ORDER BY event")
    assert [tuple(row) for row in kept] == [("refused", tbmon.AUDIT_ROWS), ("settings", 1)]
    with here.store.write() as db:
        rows = ((number, "login", "a", "b") for number in range(tbmon.AUDIT_ROWS + 3))
        here.store.put(db, "audit", rows)
    here.store.prune(0, 2**40)
    kept = here.store.read("SELECT event, COUNT(*) AS n FROM audit GROUP BY event ORDER BY event")
    assert [tuple(row) for row in kept] == [
        ("login", tbmon.AUDIT_ROWS),
        ("refused", tbmon.AUDIT_ROWS),
    ]
