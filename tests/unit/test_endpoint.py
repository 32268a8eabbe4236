"""Addresses, sockets in the file system and certificates: taken, refused with a sentence, and cleaned up."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from sglang.srt.config import HttpOptions
from sglang.srt.errors import ConfigError
from sglang.srt.process.endpoint import close_endpoint, listen_on_path, tls_context
from sglang.srt.server_args import ServerArgs


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: paths of sockets are short."""
    path = tmp_path_factory.mktemp("s")
    monkeypatch.chdir(path)
    yield path


def test_a_socket_is_for_its_owner_and_goes_with_its_server(folder: Path) -> None:
    listener = listen_on_path("sock")
    assert stat.S_IMODE(os.stat("sock").st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("sock")
    close_endpoint(listener, "sock")
    assert not os.path.exists("sock")


def test_a_socket_that_somebody_listens_on_is_not_taken(folder: Path) -> None:
    listener = listen_on_path("sock")
    with pytest.raises(ConfigError, match="another server listens"):
        listen_on_path("sock")
    listener.close()  # as by a crash: the path stays
    second = listen_on_path("sock")
    close_endpoint(listener, "sock")
    assert os.path.exists("sock")
    close_endpoint(second, "sock")


def test_a_server_that_ends_leaves_the_socket_of_the_next_one_alone(folder: Path) -> None:
    first = listen_on_path("sock")
    os.unlink("sock")
    second = listen_on_path("sock")
    close_endpoint(first, "sock")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("sock")
    close_endpoint(second, "sock")


def test_of_many_that_start_at_once_one_gets_the_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind("sock")
    taken: list[socket.socket] = []
    refused: list[str] = []

    def start() -> None:
        try:
            taken.append(listen_on_path("sock"))
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and len(refused) == 15
    assert all("another server listens" in message for message in refused)
    close_endpoint(taken[0], "sock")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("x" * 120, "107 bytes"),
        ("file", "is not a socket"),
        ("folder", "is not a socket"),
        ("link", "is not a socket"),
        ("none/sock", "'none/sock'"),
        ("file/sock", "'file/sock'"),
        ("a\0b", "cannot listen"),
        ("", "a path is expected"),
    ],
)
def test_unusable_socket_paths(folder: Path, path: str, said: str) -> None:
    (folder / "file").write_text("kept")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("file")
    with pytest.raises(ConfigError, match=said) as caught:
        listen_on_path(path)
    assert len(str(caught.value)) < 300 and "--uds" in str(caught.value)
    assert (folder / "file").read_text() == "kept"


# --- TLS --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem and key.pem, locked.pem (the key, with the password "word"), both.pem, other.pem (another key), der.pem."""
    folder = tmp_path_factory.mktemp("pems")
    ca = trustme.CA()
    one, two = ca.issue_cert("localhost"), ca.issue_cert("localhost")
    one.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    one.private_key_pem.write_to_path(str(folder / "key.pem"))
    one.private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    two.private_key_pem.write_to_path(str(folder / "other.pem"))
    key = serialization.load_pem_private_key(one.private_key_pem.bytes(), None)
    for name, kind in (("locked.pem", serialization.Encoding.PEM), ("der.pem", serialization.Encoding.DER)):
        lock = serialization.BestAvailableEncryption(b"word")
        (folder / name).write_bytes(key.private_bytes(kind, serialization.PrivateFormat.PKCS8, lock))
    (folder / "empty.pem").write_text("")
    (folder / "torn.pem").write_text((folder / "key.pem").read_text()[:100] + "\n-----END PRIVATE KEY-----\n")
    for path in folder.iterdir():
        path.chmod(0o600)
    return folder


def options(pems: Path, cert: str | None, key: str | None, password: str | None = None) -> HttpOptions:
    names = [None if name is None else str(pems / name) for name in (cert, key)]
    return HttpOptions(ssl_certfile=names[0], ssl_keyfile=names[1], ssl_keyfile_password=password)


def test_certificates_that_fit(pems: Path) -> None:
    assert tls_context(options(pems, None, None)) is None
    for cert, key, password in (("cert.pem", "key.pem", None), ("both.pem", None, None), ("cert.pem", "locked.pem", "word")):
        assert tls_context(options(pems, cert, key, password)) is not None


@pytest.mark.parametrize(
    ("cert", "key", "password", "said"),
    [
        (None, "key.pem", None, "--ssl-keyfile needs --ssl-certfile"),
        (None, None, "guess", "--ssl-keyfile-password needs --ssl-certfile"),
        ("gone.pem", "key.pem", None, "--ssl-certfile .*gone.pem.* cannot be read: No such file"),
        ("cert.pem", "gone.pem", None, "--ssl-keyfile .*gone.pem cannot be read: No such file"),
        ("cert.pem", "", None, "--ssl-keyfile .* cannot be read: Is a directory"),
        ("key.pem", "key.pem", None, "--ssl-certfile .* holds no PEM block of a certificate"),
        ("cert.pem", "cert.pem", None, "--ssl-keyfile .* holds no PEM block of a private key"),
        ("cert.pem", None, None, "--ssl-certfile .* holds no PEM block of a private key"),
        ("empty.pem", "key.pem", None, "holds no PEM block"),
        ("cert.pem", "der.pem", None, "--ssl-keyfile .*der.pem"),
        ("cert.pem", "other.pem", None, "is not the key of"),
        ("cert.pem", "torn.pem", None, "cannot be used"),
        ("cert.pem", "locked.pem", None, "is encrypted: give --ssl-keyfile-password-file"),
        ("cert.pem", "locked.pem", "guess", "the password .* is wrong"),
    ],
)
def test_certificates_that_do_not(pems: Path, cert: str | None, key: str | None, password: str | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        tls_context(options(pems, cert, key, password))
    assert len(str(caught.value)) < 400 and "guess" not in str(caught.value)


def test_the_password_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "word").write_text("with a blank \n")
    (tmp_path / "word").chmod(0o600)
    args = ServerArgs(ssl_keyfile_password_file=str(tmp_path / "word"))
    assert args.resolve().http.ssl_keyfile_password == "with a blank "
    args.ssl_keyfile_password = "twice"
    with pytest.raises(ConfigError, match="leave one out"):
        args.resolve()


@pytest.mark.parametrize("path", ["llm", "/a b", "/a/../b", "//", "/a//b", "http://x/a", "/a?b", "/..", "/a\n"])
def test_root_paths_that_are_none(path: str) -> None:
    if path == "//":  # the root
        assert ServerArgs(root_path=path).resolve().http.root_path == ""
        return
    with pytest.raises(ConfigError, match="--root-path"):
        ServerArgs(root_path=path).resolve()


@pytest.mark.parametrize(
    ("flags", "url"),
    [
        ({}, "http://127.0.0.1:30000"),
        ({"host": "::"}, "http://[::]:30000"),
        ({"ssl_certfile": "c", "host": "0.0.0.0", "port": 443}, "https://127.0.0.1:443"),
        ({"uds": "/run/s"}, "unix:/run/s"),
    ],
)
def test_where_it_is(flags: dict[str, str], url: str) -> None:
    assert ServerArgs(**flags).url() in (url, url.replace("[::]", "127.0.0.1"))  # type: ignore[arg-type]
