"""A group of config.py takes its fields from the flags of the same names (server_args.group_of): both must mean the same."""

from __future__ import annotations

import dataclasses
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from sglang.srt import server_args
from sglang.srt.server_args import ServerArgs

FLAGS = {f.name: f for f in dataclasses.fields(ServerArgs)}


def parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def kinds(hint: Any) -> set[Any]:
    """The types that a hint allows; those of a Literal are text."""
    return {str if get_origin(part) is Literal else part for part in parts(hint)}


def literals(hint: Any) -> set[Any]:
    return {value for part in parts(hint) if get_origin(part) is Literal for value in get_args(part)}


def test_fields_of_one_name_have_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[type, str]] = []
    group_of = server_args.group_of

    def note(flags: ServerArgs, group: type[Any], **others: Any) -> Any:
        found.extend((group, f.name) for f in dataclasses.fields(group) if f.name in FLAGS and f.name not in others)
        return group_of(flags, group, **others)

    monkeypatch.setattr(server_args, "group_of", note)
    ServerArgs().resolve()
    assert len(found) > 40
    for group, name in found:
        hint, flag = get_type_hints(group)[name], get_type_hints(ServerArgs)[name]
        assert kinds(flag) <= kinds(hint), f"{group.__name__}.{name} is no {flag}"
        if literals(hint):
            assert set(FLAGS[name].metadata["choices"]) == literals(hint), f"{group.__name__}.{name}"
