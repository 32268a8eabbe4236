"""Flags in the environment: `SGLANG_` and the flag's name in capitals, as SGLANG_PORT for --port.

An empty variable counts as unset, except for API keys: a server that does not start is better than one that is open by mistake.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sglang.common.suggest import nearest
from sglang.srt.flags.config_file import Given

PREFIX = "SGLANG_"
_OTHERS = frozenset({"SGLANG_IS_IN_CI", "SGLANG_TEST_MAX_RETRY", "SGLANG_TRACE"})
"""variables that are no flags"""
_OF_KUBERNETES = ("SGLANG_SERVICE_", "SGLANG_PORT_")
"""in every pod of a namespace with a Service named sglang"""


def variable(name: str) -> str:
    """The variable of a flag."""
    return PREFIX + name.upper()


def read_environment(
    environ: Mapping[str, str], names: Collection[str], keys: Collection[str]
) -> tuple[list[Given], list[str]]:
    """The flags among the variables, and a line for each that looks like one and is none. `names`: of all flags; `keys`: of those
    that are API keys."""
    by_variable = {variable(name): name for name in names}
    found, notes = [], []
    for key in sorted(key for key in environ if key.startswith(PREFIX)):
        name, value = by_variable.get(key), environ[key]
        if key.startswith(_OF_KUBERNETES) or (name == "port" and value.startswith("tcp://")):
            if name == "port":
                notes.append(
                    "SGLANG_PORT is of Kubernetes (a Service named sglang), and not read: set enableServiceLinks: false"
                )
        elif name is None:
            if key not in _OTHERS:
                close = nearest(key, by_variable)
                notes.append(f"{key:.80} is not read: no flag has this name" + (f"; did you mean {close}?" if close else ""))
        elif value or name in keys:
            found.append(Given(key, name, value))
    return found, notes
