"""`--config FILE`: flags in a YAML file, one per line.

Scalars are read as text, so that `api-key: 0123` is not an octal number and `dtype: no` not a boolean; each flag parses its own
text. Anchors and aliases (with which a short file can expand to a huge one), tags and repeated keys are refused. Errors name the
file and the line, and never show a value.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from sglang.srt.errors import ConfigError

MAX_BYTES = 256 << 10
MAX_DEPTH = 32
MAX_NAME = 80
"""characters of a key that an error repeats"""
TRUTHS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
_PLAIN_TAGS = ("null", "bool", "int", "float", "str", "timestamp", "seq", "map", "value", "merge")


@dataclass(frozen=True)
class Given:
    """A flag that does not stand on the command line. `where`: the file and line, or the variable. `value`: as it is written, or
    JSON if it `is_object`."""

    where: str
    name: str
    value: str | list[str]
    is_object: bool = False


def read_config_file(path: str) -> list[Given]:
    """The flags of a file, without those that are null. Raises ConfigError."""
    lines = read_mapping("--config", path)
    if lines is None:
        _fail("--config", path, None, "holds no flags: a line for each is expected, such as port: 30000")
    return flags_among(path, lines)


def read_mapping(flag: str, path: str) -> list[tuple[Any, Any]] | None:
    """The keys and values of a YAML file, as nodes, which know their lines; None if it holds something else. `flag`: which names
    the file. Raises ConfigError."""
    root = _compose(flag, path, _read(flag, path))
    return None if root is None or root.id != "mapping" else list(root.value)


def flags_among(path: str, lines: list[tuple[Any, Any]]) -> list[Given]:
    """The flags of a mapping, without those that are null. Raises ConfigError."""
    return [given for key, value in lines if (given := _given(path, key, value)) is not None]


def _read(flag: str, path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            _fail(flag, path, None, f"is longer than {MAX_BYTES >> 10} KiB, which no list of flags is")
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name with a null
        reason = getattr(error, "strerror", None) or ("it is not UTF-8" if isinstance(error, UnicodeError) else str(error))
        _fail(flag, path, None, f"cannot be read: {reason}")


def _compose(flag: str, path: str, text: str) -> Any:
    """The document as nodes, which know their lines."""
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            line = event.start_mark.line + 1
            if depth > MAX_DEPTH:
                _fail(flag, path, line, f"is nested more than {MAX_DEPTH} levels deep")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                _fail(
                    flag,
                    path,
                    line,
                    "has an anchor or alias (& or *): write the value where it belongs, in quotes if it begins so",
                )
            tag = getattr(event, "tag", None)
            if tag is not None and tag.rpartition(":")[2] not in _PLAIN_TAGS:
                _fail(flag, path, line, "has a tag (!), which is not read; put a value that begins with ! in quotes")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _fail(flag, path, mark.line + 1 if mark is not None else None, f"is not YAML: {_problem(error.problem)}")
    except yaml.YAMLError as error:  # characters that YAML does not have
        _fail(flag, path, None, f"is not YAML: {str(error).splitlines()[0]}")


def _problem(text: str | None) -> str:
    text = text or "it cannot be read"
    return text.replace("'\\t'", "TAB") + ("; indent with blanks, not with tabs" if "\\t" in text else "")


def _given(path: str, key: Any, value: Any) -> Given | None:
    where = f"{path}, line {key.start_mark.line + 1}"
    if key.id != "scalar":
        raise ConfigError(f"{where}: a flag's name is expected before the colon")
    if value.id == "scalar" and value.tag == "tag:yaml.org,2002:null":
        return None
    return Given(where, key.value.strip(), _written(where, key.value, value), is_object=value.id == "mapping")


def _written(where: str, name: str, node: Any) -> str | list[str]:
    if node.id == "scalar":
        return str(node.value)
    if node.id == "sequence":
        if any(item.id != "scalar" for item in node.value):
            raise ConfigError(
                f"{where}: {name:.{MAX_NAME}} is a list of lists: a flag takes one value, or a list of plain ones"
            )
        return [str(item.value) for item in node.value]
    return _as_json(where, name, node)


def _as_json(where: str, name: str, node: Any) -> str:
    """A mapping, for the flags that take JSON."""
    import yaml

    loader = yaml.SafeLoader("")
    try:
        return json.dumps(loader.construct_document(node))
    except (yaml.YAMLError, TypeError, ValueError, OverflowError):
        raise ConfigError(f"{where}: {name:.{MAX_NAME}} has a value that JSON lacks, such as a date") from None
    finally:
        loader.dispose()


def _fail(flag: str, path: str, line: int | None, message: str) -> NoReturn:
    raise ConfigError(f"{flag} {path}{f', line {line},' if line is not None else ''} {message}")
