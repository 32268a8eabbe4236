"""Flags from a file and from the environment: which of them counts, and the error for an invalid one."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.errors import ConfigError
from sglang.srt.flags.environment import variable
from sglang.srt.process.secret_values import hidden_words, hide_secrets
from sglang.srt.server_args import ServerArgs, parse_server_args

SECRET = "sk-quite-secret"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SGLANG_")]:
        monkeypatch.delenv(name)


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "server.yaml"
    path.write_bytes(text.encode())
    path.chmod(0o600)
    return str(path)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse_server_args(list(words), "serve").resolve()
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1 and len(err) < 400
    return err


def test_the_command_line_comes_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(tmp_path, "port: 31001\ntp: 2\nstream-interval: 5\nlog-requests: true\ndisable_radix_cache: on\n")
    monkeypatch.setenv("SGLANG_PORT", "31002")
    monkeypatch.setenv("SGLANG_TENSOR_PARALLEL_SIZE", "3")
    monkeypatch.setenv("SGLANG_LOG_REQUESTS", "0")
    args = parse_server_args(["--config", path, "--port", "31003", "--no-disable-radix-cache"], "serve")
    assert (args.port, args.tp_size, args.stream_interval) == (31003, 3, 5)
    assert (args.log_requests, args.disable_radix_cache) == (False, False)
    monkeypatch.setenv("SGLANG_CONFIG", path)
    assert parse_server_args([], "serve").port == 31002 and parse_server_args([], "serve").stream_interval == 5


def another_value(field: dataclasses.Field[Any]) -> Any:
    """One that the flag takes and that is not its default."""
    if isinstance(field.default, bool):
        return not field.default
    choices = [choice for choice in field.metadata.get("choices", ()) if choice not in (field.default, "gguf")]
    return choices[0] if choices else 7 if not isinstance(field.default, str) else "7"


def test_every_flag_is_read_from_a_file_and_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [f for f in dataclasses.fields(ServerArgs) if f.metadata["help"] != argparse.SUPPRESS]
    wanted = {f.name: another_value(f) for f in fields if f.name != "tokenizer_mode"}  # which has one value
    lines = [f"{name.replace('_', '-')}: {value}\n" for name, value in wanted.items()]
    from_file = parse_server_args(["--config", config(tmp_path, "".join(lines))], "serve")
    for name, value in wanted.items():
        monkeypatch.setenv(variable(name), str(value))
    from_environment = parse_server_args([], "serve")
    for args in (from_file, from_environment):
        assert {name: str(getattr(args, name)).removesuffix(".0") for name in wanted} == {n: str(v) for n, v in wanted.items()}


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("port: 1\nprot: 3\n", 2, "did you mean port?"),
        ("port: many\n", 1, "invalid int value"),
        ("# ports\n\nport: [1, 2]\n", 3, "one value, not a list"),
        ("port: 1\nhost: a\nport: 2\n", 3, "the first is"),
        ("tp: 1\ntensor_parallel_size: 2\n", 2, "the first is"),
        ("host: a\n\tport: 3\n", 2, "not with tabs"),
        ("a: &x [1]\nb: *x\n", 1, "anchor or alias"),
        ("host: !secret x\n", 1, "a tag"),
        ("host: !!python/object/apply:os.system [echo]\n", 1, "a tag"),
        ("log-requests: maybe\n", 1, "must be true or false"),
        ("log-requests: [true]\n", 1, "must be true or false"),
        ("log-level: loud\n", 1, "invalid choice"),
        ("cors-origins: [[a]]\n", 1, "a list of lists"),
        ("? [a]\n: 1\n", 1, "a flag's name is expected"),
        ("preferred-sampling-params: {day: 2020-01-01}\n", 1, "a value that JSON lacks"),
        ("config: other.yaml\n", 1, "only a command line reads flags from a file"),
        ("a: " + "[" * 40, 1, "nested"),
        ("max-body-bytes: much\n", 1, "64MiB or 2G"),
        ("<<: {port: 3}\n", 1, "unknown flag <<"),
        ("pp-size: 2\n", 1, "not possible here"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(
    text: str, line: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = refusal(capsys, "--config", config(tmp_path, text))
    assert f"server.yaml, line {line}" in err and said in err


def test_values_are_read_as_they_are_written(tmp_path: Path) -> None:
    args = parse_server_args(["--config", config(tmp_path, "api-key: 0123\nserved-model-name: no\nhost: 1:30\n")], "serve")
    assert (args.api_key, args.served_model_name, args.host) == ("0123", "no", "1:30")
    args = parse_server_args(
        ["--config", config(tmp_path, "api-key: [a, b]\npreferred-sampling-params: {top_k: 3}\nmax_body_bytes: 2G\n")], "serve"
    )
    assert (args.api_key, args.preferred_sampling_params, args.max_body_bytes) == ("a,b", '{"top_k": 3}', 2 << 30)


def test_what_is_out_of_range_names_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = parse_server_args(["--config", config(tmp_path, "\nport: 99999\n")], "serve")
    with pytest.raises(ConfigError, match=r"--port \(.*server.yaml, line 2\) must be between"):
        args.resolve()
    monkeypatch.setenv("SGLANG_PORT", "99999")
    with pytest.raises(ConfigError, match=r"--port \(SGLANG_PORT\) must be between"):
        parse_server_args([], "serve").resolve()
    with pytest.raises(ConfigError, match="--port must be between"):
        parse_server_args(["--port", "99998"], "serve").resolve()


@pytest.mark.parametrize(
    "text",
    [
        f"api-key: {{a: {SECRET}}}\n",
        f"api-key: [[{SECRET}]]\n",
        f"api-key: *{SECRET}\n",
        f"api-key: !{SECRET} x\n",
        f"api-key: '{SECRET}\n",
        f"api-key: {SECRET}: x\n",
        f"api-key: {SECRET}\n\tx: y\n",
        f"admin-api-key: [{SECRET}, {SECRET}]\n",
        f"api-key: {SECRET}\napi-key: {SECRET}\n",
        f'api-key: "{SECRET}\\n{SECRET}"\n',
    ],
)
def test_no_error_shows_a_secret(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, ConfigError)) as caught:
        parse_server_args(["--config", config(tmp_path, text)], "serve").resolve()
    assert SECRET not in capsys.readouterr().err + str(caught.value)


LONG = ["x" * 5000, "9" * 5000, "x/" * 2500, "a b " * 2500, "[" * 5000, "é" * 3000, "1\nb", "\x1b[2J"]


def test_no_value_makes_an_error_long_or_more_than_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each flag takes it or refuses it in one line; those that take any text, such as names of files, get the first."""
    refused = 0
    for i, field in enumerate(dataclasses.fields(ServerArgs)):
        value = LONG[0] if "str" in str(field.type) and i % 2 else LONG[i % len(LONG)]
        text = json.dumps(value, ensure_ascii=False).replace("\x1b", "\\u001b")
        path = config(tmp_path, f"{field.name.replace('_', '-')}: {text}\n")
        try:
            parse_server_args(["--config", path], "serve").resolve()
        except ConfigError as error:
            said = f"{error}\n"
        except SystemExit:
            said = capsys.readouterr().err
        else:
            continue
        refused += 1
        assert len(said) < 1700 and said.count("\n") == 1 and said[:-1].isprintable(), (field.name, said[:500])
    assert refused > 20
    for value in LONG:
        with pytest.raises(ConfigError, match="--media-root") as caught:
            ServerArgs(media_root=value).resolve()
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1700


def test_a_long_file_and_one_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "longer than 256 KiB" in refusal(capsys, "--config", config(tmp_path, "# x\n" * 100_000))
    (tmp_path / "bytes.yaml").write_bytes(b"host: \xff\n")
    assert "not UTF-8" in refusal(capsys, "--config", str(tmp_path / "bytes.yaml"))
    assert "cannot be read" in refusal(capsys, "--config", str(tmp_path))


def test_variables_that_are_no_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SGLANG_PROT", "1")
    monkeypatch.setenv("SGLANG_HOST", "")
    parse_server_args([], "serve")
    assert "SGLANG_PROT is not read: no flag has this name; did you mean SGLANG_PORT?" in capsys.readouterr().err
    monkeypatch.delenv("SGLANG_PROT")
    for name in ("SGLANG_SERVICE_HOST", "SGLANG_SERVICE_PORT", "SGLANG_PORT_30000_TCP", "SGLANG_PORT_30000_TCP_ADDR"):
        monkeypatch.setenv(name, "10.0.0.1")
    monkeypatch.setenv("SGLANG_PORT", "tcp://10.0.0.1:30000")
    assert parse_server_args([], "serve").port == 30000
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv("SGLANG_API_KEY", "")
    with pytest.raises(ConfigError, match=r"--api-key \(SGLANG_API_KEY\) has an empty key"):
        parse_server_args([], "serve").resolve()


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("64MiB", 64 << 20), ("2G", 2 << 30), ("1.5k", 1536), ("3 MB", 3_000_000), ("7", 7), ("8b", 8)]
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert parse_server_args(["--max-body-bytes", text], "serve").max_body_bytes == num_bytes
    assert ServerArgs(max_media_bytes=text).max_media_bytes == num_bytes  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "G", "-1G", "1e400", "64 miles", "9" * 50])
def test_sizes_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a size is expected" in refusal(capsys, f"--max-body-bytes={text}")
    with pytest.raises(ConfigError, match="a size is expected"):
        ServerArgs(max_body_bytes=text)  # type: ignore[arg-type]


# --- keys -------------------------------------------------------------------------------------------------------------------


def key_file(tmp_path: Path, data: bytes, mode: int = 0o600) -> str:
    path = tmp_path / "keys"
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


def test_keys_in_files(tmp_path: Path) -> None:
    path = key_file(tmp_path, "\ufeff# of the team\r\nfirst,with a comma\r\n\r\n second \n".encode())
    http = ServerArgs(api_key="third", api_key_file=path).resolve().http
    assert http.api_keys == ("third", "first,with a comma", "second")
    admin = key_file(tmp_path, b"boss\n")
    assert ServerArgs(admin_api_key_file=admin).resolve().http.admin_api_key == "boss"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "holds no key"),
        (b"# nothing\n\n", "holds no key"),
        (b"a\x00b\n", "control character"),
        (b"\xff\xfe", "UTF-8"),
        (b"x" * (2 << 20), "longer than 1 MiB"),
    ],
)
def test_key_files_without_keys(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        ServerArgs(api_key_file=key_file(tmp_path, data)).resolve()
    assert len(str(caught.value)) < 300


def test_key_files_that_cannot_be_used(tmp_path: Path) -> None:
    for path in ("/no/such/file", str(tmp_path), "a\0b"):
        with pytest.raises(ConfigError, match="--api-key-file"):
            ServerArgs(api_key_file=path).resolve()
    two = key_file(tmp_path, b"a\nb\n")
    with pytest.raises(ConfigError, match="there is one admin key"):
        ServerArgs(admin_api_key_file=two).resolve()
    with pytest.raises(ConfigError, match="leave one out"):
        ServerArgs(admin_api_key_file=key_file(tmp_path, b"a\n"), admin_api_key="b").resolve()


def test_a_world_readable_key_file_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    ServerArgs(api_key_file=key_file(tmp_path, b"a\n", 0o640)).resolve()
    assert not caplog.records
    ServerArgs(api_key_file=key_file(tmp_path, b"a\n", 0o644)).resolve()
    assert "chmod o-r" in caplog.text
    open_file = Path(config(tmp_path, f"api-key: {SECRET}\n"))
    open_file.chmod(0o644)
    parse_server_args(["--config", str(open_file)], "serve")
    said = capsys.readouterr().err
    assert said.startswith("serve: warning: --config") and "chmod o-r" in said and SECRET not in said
    later = parse_server_args(["--config", str(open_file), "--log-format", "json"], "serve")
    assert capsys.readouterr().err == "" and len(later.notes()) == 1 and "chmod o-r" in later.notes()[0]


def test_secrets_are_taken_away() -> None:
    secrets = {"api_key": "long-key-1,long-key-2", "admin_api_key": None}
    environ = {"SGLANG_API_KEY": "another", "MY_KEYS": "long-key-1,long-key-2", "OTHER": "1"}
    hide_secrets(secrets, environ)
    assert environ == {"OTHER": "1"}
    words = ["python", "--api-key", "long-key-1", "long-key-2", "--api-k=long-key-1,long-key-2", "--port", "1"]
    assert hidden_words(words, secrets) == ["python", "--api-key", "***", "***", "--api-k=***", "--port", "1"]
    args = ServerArgs(api_key=SECRET, admin_api_key=SECRET)
    assert SECRET not in f"{args.without_secrets()} {args.public(1)}" and args.public(1)["random_seed"] == 1
