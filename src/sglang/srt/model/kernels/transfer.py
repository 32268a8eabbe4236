"""What carries small arrays between the host and the device in a step (`ops.Ops.inputs`, `ops.Ops.fetch`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Inputs(Protocol):
    """Small int32 arrays that are written on the host and sent to the device together: one copy a step.

    inputs.begin();  inputs.host["rows"][0] = n;  ...;  inputs.send()
    """

    arrays: Mapping[str, Any]
    """what the ops read: static"""

    @property
    def host(self) -> Mapping[str, npt.NDArray[np.int32]]:
        """Host arrays to write to, valid from `begin` to `send`. Their old contents are undefined."""
        ...

    def begin(self) -> None:
        """Makes `host` writable: waits for a copy out of it that is still under way."""
        ...

    def send(self) -> None:
        """Ops called from here on see what `host` holds. Does not wait."""
        ...


class Fetch(Protocol):
    """A device array on its way to the host."""

    def result(self) -> npt.NDArray[Any]:
        """The values, once every op called before `fetch` has run. Waits for them."""
        ...
