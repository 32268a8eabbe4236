"""Every error the runtime raises on purpose.

SglangError
├── ConfigError            a flag, a model folder, or a combination of them is wrong: the process does not start
│   ├── ModelError         the model: unknown architecture, missing or damaged file, contradiction with its config
│   └── CapacityError      the available memory is too small for the model and its options
├── RequestError           the client's request is wrong: status 400, with a message that says how to correct it
│   ├── UnsupportedError   a field or value that would change the answer and is not implemented
│   │   └── ThreadUnsupportedError   a conversation that the server would have to store (Anthropic's API)
│   ├── TemplateRefusedError  the model's chat template does not accept these messages
│   ├── ContextLengthError  prompt and output do not fit in the context
│   ├── GrammarError       a constraint that does not compile, or is too large
│   ├── ApiKeyError        no valid API key: status 401
│   ├── AdminOnlyError     an operation for the operator only: status 403
│   ├── WrongHostError     a Host header that is not a name of this server: status 403
│   ├── ForeignPageError   a request from a web page of another origin: status 403
│   ├── NoSuchResponseError  status 404
│   ├── NoSuchFileError    a file or a batch: status 404
│   ├── NoSuchModelError   status 404
│   ├── BodyTooLargeError  status 413
│   └── NotJsonError       a body of another type: status 415
├── OverloadError          the server is at its limit: status 503, try again later
├── DeadlineError          the request exceeded its deadline: status 504
└── EngineDeadError        the scheduler is gone and the request cannot be continued: status 500
    └── EngineAwayError    it is being restarted; new requests get status 503
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_LONG_WORD = re.compile(r"[^\s'\"]{200,}")
_MAX_LINE = 2000


def one_line(message: str) -> str:
    """A message about values that may be anything: without control characters, and shortened where a value is long."""
    text = _LONG_WORD.sub(lambda word: f"{word[0][:100]}...{word[0][-40:]}", message)
    if len(text) > _MAX_LINE:
        text = f"{text[: _MAX_LINE // 2]} ... {text[-_MAX_LINE // 4 :]}"
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class SglangError(Exception):
    """Base of all errors raised on purpose. `str(error)` is a sentence for the person who caused it."""


class ConfigError(SglangError):
    """The server or engine cannot start as configured. The message is one line and repeats no more than the ends of a long value."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ModelError(ConfigError):
    """The model cannot be loaded. The message names the file and what to do."""


class UnknownModelError(ModelError):
    """There is no class for the model here."""


class CapacityError(ConfigError):
    """Memory does not suffice for the weights or for a KV pool of useful size."""


class RequestError(SglangError):
    """The request is wrong. `param` names the field when one is to blame."""

    status_code = 400
    err_type = "BadRequestError"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def rename(self, names: Mapping[str, str]) -> None:
        """Says it in a client's names of our fields (ours -> its own): in `param`, and in the message where one of ours begins it,
        or stands outside of quotes and has an underscore, so that it cannot be an ordinary word."""
        if not names:
            return
        words = re.compile("|".join(map(_place, sorted(names, key=len, reverse=True))))
        message = words.sub(lambda found: names[found[0]], str(self))
        self.args = (message,)
        self.param = names.get(self.param, self.param) if self.param is not None else None


def _place(name: str) -> str:
    return rf"\A{name}\b" if name.isalpha() else rf"(?<![\w.'\"]){re.escape(name)}(?![\w'\"])"


class UnsupportedError(RequestError):
    """The request asks for something that would change the answer and that this server does not do."""


class TemplateRefusedError(RequestError):
    """The model's chat template says that it does not take such messages."""


class ThreadUnsupportedError(UnsupportedError):
    """The request goes on with a conversation that the server is to have kept. `details` is what clients of Anthropic's API look
    for before they send all of it instead."""

    details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


class ContextLengthError(RequestError):
    """A prompt of `prompt_len` tokens and `max_new_tokens` after it do not fit in `context_len`. None: the prompt does not fit, whatever
    follows. `is_least`: it has that many, or more. `way_out`: what else the client may do. The message has the words, and the code, by
    which agents and routers know that they must shorten the conversation."""

    err_type = "invalid_request_error"
    code = "context_length_exceeded"

    def __init__(
        self,
        param: str,
        prompt_len: int,
        context_len: int,
        max_new_tokens: int | None = None,
        is_least: bool = False,
        way_out: str = "shorten the input",
    ) -> None:
        size = f"{prompt_len} tokens{' or more' if is_least else ''}"
        if max_new_tokens is not None:
            told = f"the input ({size}) and max_new_tokens {max_new_tokens} are together longer than"
            way_out = f"{way_out}, or ask for at most {context_len - prompt_len} new tokens"
        else:
            told = f"the input ({size}) {'is longer than' if prompt_len > context_len else 'leaves no room in'}"
        limit = (
            f"the model's context length ({context_len} tokens): this model's maximum context length is {context_len} tokens"
        )
        super().__init__(f"{told} {limit}; {way_out}", param)
        self.prompt_len = prompt_len
        self.context_len = context_len
        self.max_new_tokens = max_new_tokens


class GrammarError(RequestError):
    """The constraint (regex, JSON schema, EBNF) is invalid or exceeds a limit."""


class ApiKeyError(RequestError):
    """No valid API key, or not the one that is needed."""

    status_code = 401
    err_type = "authentication_error"


class AdminOnlyError(RequestError):
    """The client is authenticated, but not authorized."""

    status_code = 403
    err_type = "permission_error"


class WrongHostError(RequestError):
    """The request names a host that is not this server (DNS rebinding)."""

    status_code = 403
    err_type = "permission_error"


class ForeignPageError(RequestError):
    """A browser asks on behalf of a page that is not this server's."""

    status_code = 403
    err_type = "permission_error"


class NoSuchResponseError(RequestError):
    """No stored response of this client has that id."""

    status_code = 404
    err_type = "invalid_request_error"


class NoSuchSessionError(RequestError):
    """No session of this client has that name."""

    status_code = 404
    err_type = "invalid_request_error"


class NoSuchFileError(RequestError):
    """A file or a batch that was never there, has been deleted, or is another client's."""

    status_code = 404
    err_type = "NotFoundError"


class NoSuchModelError(RequestError):
    """No model or adapter of that name is served."""

    status_code = 404
    err_type = "invalid_request_error"
    code = "model_not_found"

    def __init__(self, message: str, param: str | None = "model") -> None:
        super().__init__(message, param)


class BodyTooLargeError(RequestError):
    """The body exceeds the limit of bytes."""

    status_code = 413

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the body is longer than {max_bytes} bytes")


class NotJsonError(RequestError):
    """The Content-Type of the body is not JSON."""

    status_code = 415


class OverloadError(SglangError):
    """The server has no room for the request now."""

    status_code = 503
    err_type = "ServiceUnavailableError"


class DeadlineError(SglangError):
    """The request's time was up before its answer was there."""

    status_code = 504
    err_type = "TimeoutError"


class EngineDeadError(SglangError):
    """The scheduler died while the request was in flight, and no other one continues it."""

    status_code = 500
    err_type = "InternalServerError"


class StateLostError(EngineDeadError):
    """What the request refers to was in a replica that is gone."""

    status_code = 404
    err_type = "invalid_request_error"


class DeadlyRequestError(EngineDeadError):
    """The scheduler died several times while it worked on the request."""


class EngineAwayError(EngineDeadError):
    """The scheduler has died and is being restarted. The request was not started: it is safe to try again."""

    status_code = 503
    err_type = "ServiceUnavailableError"
