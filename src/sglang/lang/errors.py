"""Every error the language raises on purpose.

    LanguageError
    ├── ProgramError             a mistake in the program: nested roles, a variable read inside its own scope...
    ├── NoBackendError           nothing to run on: neither `backend=` nor set_default_backend
    ├── TypedValueError          a generated text is not a value of the type asked for
    ├── StateCancelledError      the state was cancelled: its stream was closed, or `cancel()` was called
    └── BackendError             a request of the program failed; carries the prompt's tail and the request id
        ├── BackendConnectionError   no connection, after retries
        ├── BackendTimeoutError      no answer in time
        ├── RequestRefusedError      the server refused the request (4xx); `status_code`, `server_message`
        ├── ServerError              the server failed (5xx, or an error inside a stream)
        ├── BadReplyError            the answer violates the protocol
        └── UnsupportedFeatureError  this backend does not support what the program asks for

A failed expression does not raise where it was appended (generation runs behind the program) but where its value is first used:
`s["x"]`, `text()`, `messages()`, `sync()`, an iterator. `state.error()` returns it without raising.
"""

from __future__ import annotations

TAIL_LEN = 60
"""characters of the prompt's end shown in a message"""


class LanguageError(Exception):
    """Base of all errors raised on purpose. `str(error)` is a sentence for the person who caused it."""


class ProgramError(LanguageError):
    """The program asks for something that has no meaning."""


class NoBackendError(LanguageError):
    """There is nothing to run the program on."""


class TypedValueError(LanguageError, ValueError):
    """The generated text cannot be read as the type asked for. `text` is the text."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text


class StateCancelledError(LanguageError):
    """The state was cancelled before the value was there."""


class BackendError(LanguageError, RuntimeError):
    """A request failed. `rid` and `prompt_tail` are filled in by the executor before anyone sees the error."""

    def __init__(self, message: str, *, status_code: int | None = None, server_message: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.server_message = server_message
        self.rid: str | None = None
        self.prompt_tail: str | None = None

    def attach(self, rid: str | None, prompt: str) -> None:
        """Says which request this was."""
        self.rid = rid
        self.prompt_tail = prompt[-TAIL_LEN:]

    def __str__(self) -> str:
        where = []
        if self.rid:
            where.append(f"request {self.rid}")
        if self.prompt_tail:
            where.append(f"prompt ending in {self.prompt_tail!r}")
        return f"{self.message} [{', '.join(where)}]" if where else self.message


class BackendConnectionError(BackendError, ConnectionError):
    """The server could not be reached, or closed the connection, and trying again did not help."""


class BackendTimeoutError(BackendError, TimeoutError):
    """The server did not answer within the backend's time-out."""


class RequestRefusedError(BackendError):
    """The server says the request is wrong."""


class ServerError(BackendError):
    """The server says that it failed."""


class BadReplyError(BackendError):
    """The reply cannot be understood: another protocol, or a proxy in between."""


class UnsupportedFeatureError(BackendError, NotImplementedError):
    """The backend cannot do this; the message names both."""

    def __init__(self, backend: str, feature: str, advice: str = "") -> None:
        super().__init__(f"the {backend} backend does not support {feature}{'; ' + advice if advice else ''}")


def copy_of(error: BaseException) -> BaseException:
    """An equal error to raise in one more place: raising one object in many threads would mix their tracebacks."""
    try:
        clone = error.__class__.__new__(error.__class__, *error.args)
    except TypeError:
        return error
    clone.args = error.args
    clone.__dict__.update(error.__dict__)
    clone.__cause__ = error
    return clone
