"""Section 1: what an operator can set, what is refused, and that one message names all of it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from tbmon import Config, UserError, read_config, settings_help

SECRETS = ("API_KEY", "TASK_DATA_PASSWORD")


def refusal(**env: str) -> str:
    """The text with which these settings are refused."""
    with pytest.raises(UserError) as caught:
        read_config(env)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("port", 8090),
        ("host", "127.0.0.1"),
        ("container_name", "runner-node"),
        ("log_dir", ""),
        ("node_timezone", "auto"),
        ("db_path", "./data/truebit-monitor.db"),
        ("log_retention_days", 30),
        ("max_db_bytes", 2 * 1024**3),
        ("api_key", ""),
        ("task_data_password", ""),
        ("max_output_data_bytes", 102400),
        ("node_env", "production"),
        ("log_level", "info"),
    ],
)
def test_the_documented_defaults_hold_with_an_empty_environment(name: str, default: object) -> None:
    assert getattr(read_config({}), name) == default


def test_other_programs_variables_are_none_of_our_business() -> None:
    assert read_config(
        {"PATH": "/bin", "port": "1", "TBMON_PORT": "2", "HOSTNAME": "x"}
    ) == read_config({})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PORT", "1", 1),
        ("PORT", "65535", 65535),
        ("PORT", " 8091 ", 8091),
        ("HOST", "0.0.0.0", "0.0.0.0"),
        ("CONTAINER_NAME", "truebit_node-1.2", "truebit_node-1.2"),
        ("DOCKER_HOST", "unix:///run/podman.sock", "unix:///run/podman.sock"),
        ("DOCKER_HOST", "tcp://10.0.0.5:2376", "tcp://10.0.0.5:2376"),
        ("DOCKER_TLS_VERIFY", "1", True),
        ("DOCKER_TLS_VERIFY", "True", True),
        ("DOCKER_TLS_VERIFY", "no", False),
        ("NODE_TIMEZONE", "UTC", "UTC"),
        ("NODE_TIMEZONE", "Europe/Berlin", "Europe/Berlin"),
        ("MAX_OUTPUT_DATA_BYTES", "0", 0),
        ("LOG_LEVEL", "warning", "warning"),
        ("NODE_ENV", "development", "development"),
        ("API_KEY", "k3y", "k3y"),
    ],
)
def test_a_good_value_is_taken_as_its_type(name: str, text: str, value: object) -> None:
    taken = getattr(read_config({name: text}), name.lower())
    assert taken == value
    assert type(taken) is type(value)


@pytest.mark.parametrize("name", [item.name for item in fields(Config)])
def test_an_empty_variable_counts_as_not_set(name: str) -> None:
    assert read_config({name.upper(): ""}) == read_config({})


@pytest.mark.parametrize(
    ("name", "text", "takes"),
    [
        ("PORT", "0", "a whole number from 1 to 65535"),
        ("PORT", "65536", "a whole number from 1 to 65535"),
        ("PORT", "-1", "a whole number"),
        ("PORT", "80.5", "a whole number"),
        ("PORT", "1_000", "a whole number"),
        ("PORT", "http", "a whole number"),
        ("PORT", "  ", "a whole number"),
        ("PORT", "9" * 5000, "a whole number"),
        ("LOG_RETENTION_DAYS", "0", "a whole number from 1"),
        ("MAX_DB_BYTES", "2G", "a whole number from 8388608"),
        ("DOCKER_TLS_VERIFY", "maybe", "true or false"),
        ("NODE_ENV", "staging", "production or development"),
        ("LOG_LEVEL", "loud", "debug or info or warning or error"),
        ("NODE_TIMEZONE", "Mars/Olympus", "auto, UTC or a zone like Europe/Berlin"),
        ("NODE_TIMEZONE", "../../etc/passwd", "auto, UTC"),
        ("NODE_TIMEZONE", "Europe", "auto, UTC"),
        ("CONTAINER_NAME", "a/../b", "a container's name"),
        ("CONTAINER_NAME", "-x", "a container's name"),
        ("DOCKER_HOST", "ssh://host", "for ssh, tunnel to a socket"),
        ("DOCKER_HOST", "/var/run/docker.sock", "unix:///path or tcp://host:port"),
        ("DOCKER_HOST", "tcp:///nowhere", "unix:///path or tcp://host:port"),
    ],
)
def test_a_bad_value_is_named_with_what_the_variable_takes(
    name: str, text: str, takes: str
) -> None:
    message = refusal(**{name: text})
    assert f"{name}={text!r}" in message
    assert takes in message


def test_all_bad_values_are_named_at_once() -> None:
    bad = {
        "PORT": "x",
        "LOG_LEVEL": "y",
        "CONTAINER_NAME": "/",
        "DOCKER_HOST": "z",
        "API_KEY_FILE": "/nowhere/at all",
    }
    message = refusal(**bad, HOST="::1")
    assert [name for name in bad if f"\n  {name}=" in message] == list(bad)
    assert "HOST=" not in message.replace("DOCKER_HOST=", "")


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_may_come_from_a_file(tmp_path: Path, name: str, end: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"s3cr3t with \xc3\xa4" + end.encode())
    config = read_config({f"{name}_FILE": str(file)})
    assert getattr(config, name.lower()) == "s3cr3t with ä"


def test_only_secrets_come_from_files(tmp_path: Path) -> None:
    file = tmp_path / "port"
    file.write_text("1")
    assert read_config({"PORT_FILE": str(file)}).port == 8090


@pytest.mark.parametrize("name", SECRETS)
def test_an_unreadable_secret_file_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"hunter2\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, binary):
        message = refusal(**{f"{name}_FILE": str(path)})
        assert f"{name}_FILE={str(path)!r}: cannot be read" in message
        assert "hunter2" not in message


@pytest.mark.parametrize("name", SECRETS)
def test_an_empty_secret_file_does_not_switch_protection_off(tmp_path: Path, name: str) -> None:
    file = tmp_path / "secret"
    file.write_text("\n")
    assert f"{name}_FILE=" in refusal(**{f"{name}_FILE": str(file)})


def test_no_message_shows_a_secret() -> None:
    message = refusal(PORT="x", **dict.fromkeys(SECRETS, "hunter2"))
    assert "PORT='x'" in message
    assert "hunter2" not in message


def test_docker_host_goes_before_the_socket_path() -> None:
    assert read_config({}).engine_url == "unix:///var/run/docker.sock"
    assert read_config({"DOCKER_SOCKET_PATH": "/run/d.sock"}).engine_url == "unix:///run/d.sock"
    both = {"DOCKER_SOCKET_PATH": "/run/d.sock", "DOCKER_HOST": "tcp://h:2375"}
    assert read_config(both).engine_url == "tcp://h:2375"


def test_keys_lie_beside_the_database_unless_told_otherwise() -> None:
    assert read_config({"DB_PATH": "/srv/tbmon/node.db"}).keys == Path("/srv/tbmon")
    assert read_config({"DB_PATH": "/srv/tbmon/node.db", "KEY_DIR": "/etc/tbmon"}).keys == Path(
        "/etc/tbmon"
    )


def test_the_help_has_one_line_for_every_variable() -> None:
    lines = settings_help().splitlines()[1:]
    assert [line.split()[0] for line in lines] == [item.name.upper() for item in fields(Config)]
    assert all(len(line) <= 120 for line in lines)
    assert any("8090" in line for line in lines if " PORT " in line)


def test_a_secret_and_its_file_together_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from the file")
    with pytest.raises(UserError, match=r"API_KEY_FILE.*is set beside API_KEY"):
        read_config({"API_KEY": "from the variable", "API_KEY_FILE": str(file)})
