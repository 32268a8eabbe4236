"""The address that the server listens on: a TCP port or a unix socket, plain or with TLS.

It is opened before the model is loaded, so that a wrong address or certificate is reported at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import stat
from collections.abc import Iterator

from sglang.srt.config import HttpOptions
from sglang.srt.errors import ConfigError
from sglang.srt.flags.values import read_private

MAX_SOCKET_PATH = 107
"""bytes, of sockaddr_un (104 on macOS, less one)"""
ONLY_THE_OWNER = 0o177
"""umask of the socket: opening it is the permission to send requests"""
BACKLOG = 4096


def open_endpoint(http: HttpOptions) -> socket.socket:
    """A bound socket. Raises ConfigError if the address cannot be had."""
    if http.listen_fd is not None:
        return socket.socket(fileno=http.listen_fd)
    return listen_on_path(http.uds) if http.uds is not None else listen(http.host, http.port)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, not yet listening. Raises ConfigError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError, ValueError, TypeError) as error:  # the last two: an impossible host name
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        is_ours = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)
        flag = "--port" if is_ours else "--host"
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; choose another with {flag}") from error
    listener.set_inheritable(False)
    return listener


# --- a socket in the file system --------------------------------------------------------------------------------------------


def listen_on_path(path: str) -> socket.socket:
    """A socket that listens at `path`, for its owner alone. One that a server left behind is replaced, one that a server listens on
    is not, nor is anything else. Raises ConfigError."""
    if not path or "\0" in path:
        raise ConfigError(f"cannot listen on --uds {path!r}: a path is expected, such as /run/sglang/sglang.sock")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ConfigError(f"--uds {path} is longer than the {MAX_SOCKET_PATH} bytes that the path of a socket may have")
    with _alone(path):
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(ONLY_THE_OWNER)
        try:
            listener.bind(path)
            listener.listen(BACKLOG)  # at once: another server takes one that nobody listens on for a stale one
        except OSError as error:
            listener.close()
            raise ConfigError(f"cannot listen on --uds {path!r}: {error.strerror or error}") from error
        finally:
            os.umask(before)
    return listener


@contextlib.contextmanager
def _alone(path: str) -> Iterator[None]:
    """Holds a lock: servers that start at the same time look at the socket one after the other."""
    import fcntl

    folder = os.path.dirname(os.path.abspath(path))
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"cannot listen on --uds {path!r}: {folder!r} cannot be opened ({error.strerror})") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"--uds {path} exists and is not a socket: choose another path, or remove it")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            raise ConfigError(f"--uds {path} exists, and cannot be tried: {error.strerror or error}") from error
    raise ConfigError(f"another server listens on --uds {path}: choose another path")


def close_endpoint(listener: socket.socket, path: str | None) -> None:
    """Closes it and removes its path, unless another server has taken that meanwhile."""
    listener.close()
    if path is not None:
        with contextlib.suppress(OSError, ConfigError), _alone(path):
            _remove_stale(path)


# --- TLS --------------------------------------------------------------------------------------------------------------------


def tls_context(http: HttpOptions) -> ssl.SSLContext | None:
    """The TLS settings; None: connections are not encrypted. Raises ConfigError for files that cannot be used."""
    certificate, key = http.ssl_certfile, http.ssl_keyfile
    if certificate is None:
        if key is not None or http.ssl_keyfile_password is not None:
            flag = "--ssl-keyfile" if key is not None else "--ssl-keyfile-password"
            raise ConfigError(f"{flag} needs --ssl-certfile, the certificate that the key belongs to")
        return None
    _need_pem("--ssl-certfile", certificate, "CERTIFICATE", is_private=key is None)
    _need_pem("--ssl-keyfile" if key else "--ssl-certfile", key or certificate, "PRIVATE KEY", is_private=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, http)
    return context


def renew_certificate(context: ssl.SSLContext, http: HttpOptions) -> None:
    """Connections that come from now on see what is in the files now. Raises ConfigError, and then nothing has changed."""
    tls_context(http)
    _load(context, http)


def _load(context: ssl.SSLContext, http: HttpOptions) -> None:
    certificate, key = http.ssl_certfile, http.ssl_keyfile or http.ssl_certfile
    assert certificate is not None and key is not None
    was_asked = False

    def password() -> str:
        """Without this OpenSSL asks at the terminal."""
        nonlocal was_asked
        was_asked = True
        if http.ssl_keyfile_password is None:
            raise ConfigError(f"--ssl-keyfile {key} is encrypted: give --ssl-keyfile-password-file")
        return http.ssl_keyfile_password

    try:
        context.load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"--ssl-keyfile {key} is not the key of --ssl-certfile {certificate}") from error
        if was_asked:
            raise ConfigError(f"the password of --ssl-keyfile {key} is wrong, or the file is damaged") from error
        reason = error.reason.replace("_", " ").lower() if error.reason else "one of them is damaged"
        raise ConfigError(f"--ssl-certfile {certificate} with --ssl-keyfile {key} cannot be used: {reason}") from error


def _need_pem(flag: str, path: str, what: str, is_private: bool) -> None:
    if is_private:
        text = read_private(flag, path)
    else:
        try:
            with open(path, "rb") as file:
                text = file.read().decode("latin-1")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{flag} {path!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if f"{what}-----" not in text:
        raise ConfigError(f"{flag} {path} holds no PEM block of a {what.lower()} (-----BEGIN {what}-----)")
