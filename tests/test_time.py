"""Section 2: reading and writing times, and finding the zone of stamps that have none."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbmon import Zone, parse_second, parse_time, second_text, utc

MORE = settings(derandomize=True, deadline=None, max_examples=300)
END = 4_291_747_200_000  # 2106-01-01T00:00:00Z
NOON = 1_763_985_600  # 2025-11-24 12:00:00


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1970-01-01 00:00:00", datetime(1970, 1, 1, tzinfo=UTC)),
        ("2025-11-24 13:55:34", datetime(2025, 11, 24, 13, 55, 34, tzinfo=UTC)),
        ("2025-11-24T13:55:34", datetime(2025, 11, 24, 13, 55, 34, tzinfo=UTC)),
        ("2024-02-29 23:59:59", datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)),
        ("2016-12-31 23:59:60", datetime(2017, 1, 1, tzinfo=UTC)),
        ("2105-12-31 23:59:59", datetime(2105, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_a_stamp_is_read_as_if_it_were_utc(text: str, moment: datetime) -> None:
    assert parse_second(text) == moment.timestamp()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2025-11-24",
        "2025-11-24 13:55:3",
        "2025-11-24 13:55:34 ",
        "2025-11-24 13:55:34\n",
        "2025-11-24_13:55:34",
        "2025-13-24 13:55:34",
        "2025-02-29 13:55:34",
        "2025-11-24 24:00:00",
        "2025-11-24 13:60:00",
        "2025-11-24 13:55:61",
        "1969-12-31 23:59:59",
        "2106-01-01 00:00:00",
        "0000-00-00 00:00:00",
        "٢٠٢٥-11-24 13:55:34",
    ],
)
def test_what_is_no_date_between_1970_and_2105_is_no_stamp(text: str) -> None:
    assert parse_second(text) is None


@MORE
@given(st.integers(0, END // 1000 - 1))
def test_every_second_that_is_written_is_read_back(second: int) -> None:
    assert parse_second(second_text(second)) == second


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("2025-11-24T13:55:33.912Z", 1763992533912),
        (" 2025-11-24 13:55:33.912 ", 1763992533912),
        ("2025-11-24T13:55:33.912345678Z", 1763992533912),
        ("2025-11-24T13:55:33.9Z", 1763992533900),
        ("2025-11-24T13:55:33", 1763992533000),
        ("2025-11-24T14:55:33.912+01:00", 1763992533912),
        ("2025-11-24T08:25:33.912-0530", 1763992533912),
        (1763992533912, 1763992533912),
        (1763992533, 1763992533000),
        (1763992533.9125, 1763992533912),
        ("1763992533912", 1763992533912),
        ("1763992533", 1763992533000),
        (0, 0),
        (END - 1, END - 1),
    ],
)
def test_a_time_is_read_in_every_form_the_node_was_seen_to_write(value: object, ms: int) -> None:
    assert parse_time(value) == ms


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        [],
        {},
        b"1763992533",
        "",
        "soon",
        "2025-11-24",
        "2025-02-30T00:00:00Z",
        "2025-11-24T13:55:33.912+1",
        "2025-11-24T13:55:33+99:99",
        "1e12",
        "-5",
        -1,
        float("nan"),
        float("inf"),
        10**30,
        "9" * 400,
    ],
)
def test_what_is_no_time_is_none(value: object) -> None:
    assert parse_time(value) is None


@pytest.mark.parametrize(
    "value",
    [
        END,
        END // 1000,
        99_999_999_999,
        "99999999999",
        "1970-01-01T00:00:00+01:00",
        "2105-12-31T23:59:59-01:00",
    ],
)
def test_a_time_outside_1970_to_2105_is_none_in_every_form(value: object) -> None:
    assert parse_time(value) is None


@MORE
@given(
    st.one_of(
        st.text(),
        st.floats(),
        st.integers(),
        st.from_regex(r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}\Z"),
    )
)
def test_a_time_never_raises_and_can_always_be_written(value: object) -> None:
    ms = parse_time(value)
    assert ms is None or (0 <= ms < END and utc(ms))


@MORE
@given(st.integers(0, END - 1))
def test_every_time_that_is_written_is_read_back(ms: int) -> None:
    assert parse_time(utc(ms)) == ms


def test_a_written_time_has_milliseconds_and_a_z() -> None:
    assert utc(1763992533007) == "2025-11-24T13:55:33.007Z"
    assert utc(None) is None


@pytest.mark.parametrize(
    ("stamp", "moment"),
    [
        ("2025-11-24 13:55:34", "2025-11-24T12:55:34.000Z"),
        ("2025-07-24 13:55:34", "2025-07-24T11:55:34.000Z"),
        ("1970-01-01 00:30:00", "1969-12-31T23:30:00.000Z"),
    ],
)
def test_a_named_zone_decides_by_its_own_rules(stamp: str, moment: str) -> None:
    second = parse_second(stamp)
    assert second is not None
    assert utc(Zone("Europe/Berlin").utc_ms(second)) == moment


def test_a_named_zone_learns_nothing() -> None:
    zone = Zone("UTC")
    for number in range(50):
        zone.learn(NOON + 3600 + number, (NOON + number) * 1000)
    assert zone.utc_ms(NOON) == NOON * 1000


def test_auto_is_utc_until_there_is_something_to_compare_with() -> None:
    assert Zone("auto").utc_ms(NOON) == NOON * 1000
    assert Zone("auto", 3600).utc_ms(NOON) == (NOON - 3600) * 1000


@pytest.mark.parametrize("minutes", [0, 60, 330, 345, 765, -210, -720])
@pytest.mark.parametrize("late_ms", [0, 999, 59_000])
def test_auto_takes_the_offset_from_the_first_header(minutes: int, late_ms: int) -> None:
    zone = Zone("auto")
    zone.learn(NOON + minutes * 60, NOON * 1000 + late_ms)
    assert zone.offset_s == minutes * 60
    assert zone.utc_ms(NOON + minutes * 60) == NOON * 1000


@pytest.mark.parametrize("difference", [450, -400, 61, 16 * 3600, -30 * 86400])
def test_auto_takes_no_offset_from_a_header_that_can_be_no_zone(difference: int) -> None:
    zone = Zone("auto")
    for number in range(50):
        zone.learn(NOON + difference + number, (NOON + number) * 1000)
    assert zone.offset_s is None


def test_auto_follows_summer_time_after_two_minutes_of_agreeing_headers() -> None:
    zone = Zone("auto", 3600)
    for second in (NOON, NOON, NOON, NOON + 119, NOON + 119, NOON + 119):
        zone.learn(second + 7200, second * 1000)
        assert zone.offset_s == 3600
    zone.learn(NOON + 120 + 7200, (NOON + 120) * 1000)
    assert zone.offset_s == 7200


def test_auto_does_not_change_for_a_burst_of_headers() -> None:
    zone = Zone("auto", 3600)
    for _ in range(1000):
        zone.learn(NOON + 7200, NOON * 1000)
    assert zone.offset_s == 3600


@pytest.mark.parametrize("between", [3600, 10800, 3600 + 450])
def test_auto_does_not_change_for_headers_that_disagree(between: int) -> None:
    zone = Zone("auto", 3600)
    for second in range(NOON, NOON + 1000, 100):
        for _ in range(10):
            zone.learn(second + 7200, second * 1000)
        zone.learn(second + between, second * 1000)
    assert zone.offset_s == 3600
