"""Profiles the loop on demand: interpreter time by function, in a file for `python -m pstats FILE`."""

from __future__ import annotations

import cProfile
import os
import tempfile
import time

from sglang.srt.messages import ControlReply, ProfileReq


class Profiler:
    """At most one profile at a time, of the thread that calls `handle`. Files go to a private folder, under our own names:
    no client says where this process writes."""

    def __init__(self) -> None:
        self._profile: cProfile.Profile | None = None
        self._folder: str | None = None

    def handle(self, message: ProfileReq) -> ControlReply:
        """Takes effect with the next call of a function."""
        if message.start == (self._profile is not None):
            state = "running already" if message.start else "not running"
            return ControlReply(message.call_id, False, f"the profile is {state}")
        if message.start:
            self._profile = cProfile.Profile()
            try:
                self._profile.enable()
            except ValueError:  # someone else's, in this process
                self._profile = None
                return ControlReply(message.call_id, False, "another profiler is active in this process")
            return ControlReply(message.call_id, message="the profile is running")
        profile, self._profile = self._profile, None
        assert profile is not None
        profile.disable()
        self._folder = self._folder or tempfile.mkdtemp(prefix="sglang-profile-")
        path = os.path.join(self._folder, f"{time.strftime('%Y%m%d-%H%M%S')}.pstats")
        profile.dump_stats(path)
        return ControlReply(message.call_id, message=path)
