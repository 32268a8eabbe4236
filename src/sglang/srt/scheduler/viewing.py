"""Data for the page's machine view: changes of the prefix tree, steps, and the state, at most ten times a second and only while a viewer
is connected. Without a viewer the tree has no observer and nothing is recorded.

    tree --changed, removed--> dirty --NUM_AT_ONCE a delta--> ViewDelta --> server/page/live.py

However large the tree is, a delta has a bounded number of nodes, and no more than MAX_NODES are shown: those nearest to the roots
when the viewer came, then what fits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sglang.srt.machine_view import NodeView, StepView
from sglang.srt.messages import Outbox, SchedulerStats, ViewDelta
from sglang.srt.scheduler.batch import ScheduleBatch
from sglang.srt.scheduler.cache.radix_cache import RadixCache, TreeNode

SECONDS_BETWEEN = 0.1
MAX_NODES = 20_000
NUM_AT_ONCE = 500
MAX_STEPS = 200
"""of one delta; of more, the last"""
NUM_IDS = 24


class Viewing:
    """The observer of the tree (RadixCache.observer) while there are viewers."""

    def __init__(self, tree: RadixCache, outbox: Outbox) -> None:
        self._tree = tree
        self._outbox = outbox
        self.is_on = False
        """whether there are viewers; without them nothing is noted or reported"""
        self._end(False)

    def _end(self, is_on: bool) -> None:
        self.is_on = is_on
        self._is_first = True
        self._dirty: dict[int, TreeNode] = {}
        self._shown: set[int] = set()
        self._gone: list[int] = []
        self._omitted: set[int] = set()
        self._steps: list[StepView] = []
        self._last_step = self._next_report = 0.0
        self._told: SchedulerStats | None = None
        """the last state that was sent"""
        self._tree.observer = self if is_on else None

    def look(self, on: bool) -> None:
        """Handles the first viewer, or the end of the last one."""
        self._end(on)
        level = self._tree.roots() if on else []
        while level:
            level = [child for node in level for child in node.children.values()]
            self._dirty.update((node.id, node) for node in level)

    def limit(self, seconds: float) -> float:
        """The time that an idle scheduler may wait, at most the time that it asks for."""
        return min(seconds, SECONDS_BETWEEN) if self.has_news else seconds

    @property
    def has_news(self) -> bool:
        """Whether there are changes to send, and viewers."""
        return self.is_on and bool(self._dirty or self._gone or self._steps or self._is_first)

    # --- notes ----------------------------------------------------------------------------------------------------------------

    def changed(self, node: TreeNode) -> None:
        self._dirty[node.id] = node

    def removed(self, node: TreeNode) -> None:
        self._dirty.pop(node.id, None)
        self._omitted.discard(node.id)
        if node.id in self._shown:
            self._shown.discard(node.id)
            self._gone.append(node.id)

    def note_step(self, batch: ScheduleBatch, num_accepted: int) -> None:
        """A step has ended."""
        now = time.monotonic()
        num_draft = sum(len(extend.draft.ids) for extend in batch.extends if extend.draft is not None)
        num_prompt = sum(extend.end - extend.start for extend in batch.prefills)
        jumps = [extend for extend in batch.extends if extend.is_jump]
        num_forced = sum(extend.end - extend.start - 1 for extend in jumps)
        since = now - self._last_step if self._last_step else 0.0
        self._last_step = now
        self._steps.append(
            StepView(len(batch.decodes) + len(jumps), num_prompt, num_forced, num_draft, num_accepted, round(since, 6))
        )
        if len(self._steps) > MAX_STEPS:
            del self._steps[0]

    def report(self, snapshot: Callable[[], SchedulerStats]) -> None:
        """Sends the changes, if there are viewers and it is time. The state changes without a step as well: requests that wait may
        be aborted."""
        if not self.is_on or (now := time.monotonic()) < self._next_report:
            return
        self._next_report = now + SECONDS_BETWEEN
        stats = snapshot()
        if not self.has_news and stats == self._told:
            return
        self._told = stats
        nodes = self._take_nodes()
        gone, self._gone = self._gone[:NUM_AT_ONCE], self._gone[NUM_AT_ONCE:]
        steps, self._steps = self._steps, []
        is_first, self._is_first = self._is_first, False
        self._outbox.send(ViewDelta(is_first, nodes, gone, len(self._dirty), len(self._omitted), steps, stats))

    def _take_nodes(self) -> list[NodeView]:
        taken: list[NodeView] = []
        for node_id in list(self._dirty):
            if len(taken) >= NUM_AT_ONCE:
                break
            node = self._dirty.pop(node_id)
            if node.parent is None:  # was removed by a flush
                continue
            if self._has_room(node):
                self._shown.add(node_id)
                taken.append(_view(node, node.parent))
            else:
                self._omitted.add(node_id)
        return taken

    def _has_room(self, node: TreeNode) -> bool:
        if node.id in self._shown or len(self._shown) < MAX_NODES:
            return True
        # put above one that is shown: without it that would hang nowhere. Each such node takes the place of a leaf
        child = next((child for child in node.children.values() if child.id in self._shown), None)
        if child is None:
            return False
        if not any(below.id in self._shown for below in child.children.values()):
            self._shown.discard(child.id)
            self._gone.append(child.id)
            self._omitted.add(child.id)
        return len(self._shown) < MAX_NODES + NUM_AT_ONCE


def _view(node: TreeNode, parent: TreeNode) -> NodeView:
    ids = node.ids[:NUM_IDS].tolist()
    return NodeView(node.id, parent.id, node.end - len(node.ids), len(node.ids), node.lock_ref > 0, node.num_hits, ids)
