"""Who owns the states of models with recurrent layers (docs/states.md).

Such a layer keeps one state of fixed size of all the text so far, and every row changes it: unlike K and V, a state belongs to one
position alone. So a request has a state of its own, in a slot or two, and the prefix tree keeps copies for a few positions:

    tree      "You are a helpful" ──────┬── " assistant. Hi"        a node may keep the state at its end
                              state 3 ──┘               └── state 5
    request   found 30 ids in the tree, the deepest state at 17: rows from 17 on are computed

Every slot is free, kept by one node of the tree, held by one request, or reserved for a state that is brought from the disk. Copies that were
not used for longest make room for others; with its node, a state goes as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sglang.srt.forward_batch import Int32Array, StateRows
from sglang.srt.scheduler.cache.radix_cache import Match, RadixCache, Salt, TreeNode

MIN_GAIN = 16
"""ids: where K and V are known for so many beyond the deepest state, the state at their end is worth keeping"""


@dataclass(eq=False)
class HeldStates:
    """The states of one request. Its state after `kv_len` ids is in slots[at], or, before its first step, in the tree's copy at
    `origin`; without either, its text begins. With two slots a step leaves the state that it began with."""

    slots: list[int]
    origin: TreeNode | None
    branch: int
    """where others have gone on otherwise: a position whose state is wanted; 0: none"""
    at: int = -1
    saves: list[tuple[int, int]] = field(default_factory=list)
    """(position, slot) of copies that the step makes, or has made, for the tree"""

    @property
    def source(self) -> int:
        if self.at >= 0:
            return self.slots[self.at]
        return self.origin.state if self.origin is not None else -1

    @property
    def next(self) -> int:
        """The index of the slot that the next step writes."""
        return (self.at + 1) % len(self.slots)


class StateSlots:
    """Owner of the slots. `page_size`: nodes of the tree end at its multiples."""

    def __init__(self, num_slots: int, page_size: int = 1) -> None:
        self.num_slots = num_slots
        self._page_size = page_size
        self._free = list(range(num_slots - 1, -1, -1))
        self._kept: dict[TreeNode, None] = {}  # least recently used first
        self._held: set[HeldStates] = set()
        self._reserved: set[int] = set()
        self.copied: Sequence[TreeNode] = ()
        """nodes whose states are being copied elsewhere: they stay"""
        self.dropping: Callable[[TreeNode], None] | None = None
        """is called before a node loses its copy"""

    # --- counting -------------------------------------------------------------------------------------------------------------

    @property
    def num_kept(self) -> int:
        """Copies in the tree."""
        return len(self._kept)

    def _in_use(self) -> set[TreeNode]:
        """Nodes whose copies are read."""
        return {held.origin for held in self._held if held.origin is not None} | set(self.copied)

    # --- a request's life -------------------------------------------------------------------------------------------------------

    def deepest(self, match: Match) -> Match:
        """The part of a cached prefix that a request can begin from: as far as there is a state."""
        node: TreeNode | None = match.node
        while node is not None and node.state < 0:
            node = node.parent
        if node is None:
            node = match.node
            while node.parent is not None:
                node = node.parent
        reached = len(match.slots)
        branch = reached if reached - node.end >= MIN_GAIN else 0
        return Match(match.slots[: node.end], node, branch)

    def open(self, match: Match, num_slots: int) -> HeldStates | None:
        """Slots for a request that begins from `match`, of `deepest`. None if there are not so many."""
        origin = match.node if match.node.state >= 0 else None
        held = HeldStates([], origin, match.branch)
        self._held.add(held)
        if origin is not None:
            self._touch(origin)
        for _ in range(num_slots):
            slot = self._alloc()
            if slot is None:
                self.free(held)
                return None
            held.slots.append(slot)
        return held

    def free(self, held: HeldStates) -> None:
        """Gives up all that a request holds."""
        self._free += held.slots
        self._free += [slot for _, slot in held.saves]
        self._held.remove(held)

    def plan_saves(self, held: HeldStates, start: int, end: int, fill_len: int) -> None:
        """Reserves copies of the states at the positions of a prompt's rows [start, end) that others may begin from."""
        last = fill_len - 1 if end == fill_len else 0
        for position in sorted({self._to_page(held.branch), self._to_page(last)}):
            if start < position <= end and (slot := self._alloc()) is not None:
                held.saves.append((position, slot))

    def _to_page(self, position: int) -> int:
        return position - position % self._page_size

    def commit(self, held: HeldStates, kv_len: int) -> None:
        """A step has written the state after `kv_len` ids."""
        held.at, held.origin = held.next, None
        if held.branch <= kv_len:
            held.branch = 0

    def undo(self, held: HeldStates) -> None:
        """Nothing of a step counts: the request is where it was before."""
        assert len(held.slots) > 1, "a request that may be late has two slots"
        self._drop_saves(held)

    def _drop_saves(self, held: HeldStates) -> None:
        self._free += [slot for _, slot in held.saves]
        held.saves.clear()

    # --- what the tree keeps ------------------------------------------------------------------------------------------------------

    def share(self, held: HeldStates, tree: RadixCache, ids: Int32Array, salt: Salt) -> None:
        """Gives the tree, which holds `ids`, the copies that were made of states on the way."""
        for position, slot in held.saves:
            if position <= len(ids):
                node = tree.match_prefix(ids[:position], salt).node
                if node.end == position and self._keep(node, slot):
                    continue
            self._free.append(slot)
        held.saves.clear()

    def close(self, held: HeldStates, node: TreeNode | None) -> None:
        """The request ends. `node`: where its ids end in the tree, if they do: it keeps the last state."""
        if node is not None and held.at >= 0 and self._keep(node, held.slots[held.at]):
            del held.slots[held.at]
        self.free(held)

    def _keep(self, node: TreeNode, slot: int) -> bool:
        """Whether the node takes the slot: it has had none."""
        if node.state >= 0:
            self._touch(node)
            return False
        node.state = slot
        self._kept[node] = None
        return True

    def _touch(self, node: TreeNode) -> None:
        del self._kept[node]
        self._kept[node] = None

    def deepest_at(self, node: TreeNode, reached: int) -> int:
        """How far the deepest copy reaches on the path that leads into `node`, of which `reached` ids are wanted."""
        at: TreeNode | None = node
        while at is not None and (at.state < 0 or at.end > reached):
            at = at.parent
        return at.end if at is not None else 0

    # --- what is brought from elsewhere -------------------------------------------------------------------------------------------

    def reserve(self) -> int | None:
        """A slot for a state that is brought from elsewhere, until `enter` or `release`. None if there is none."""
        slot = self._alloc()
        if slot is not None:
            self._reserved.add(slot)
        return slot

    def enter(self, node: TreeNode, slot: int) -> None:
        """The state at the end of `node` is in a reserved slot now."""
        self._reserved.remove(slot)
        if not self._keep(node, slot):
            self._free.append(slot)

    def release(self, slot: int) -> None:
        """A reserved slot is not needed."""
        self._reserved.remove(slot)
        self._free.append(slot)

    def forget(self, node: TreeNode) -> None:
        """The node, or its end, is about to go."""
        if node.state >= 0:
            if self.dropping is not None:
                self.dropping(node)
            self._free.append(node.state)
            node.state = -1
            del self._kept[node]

    def _alloc(self) -> int | None:
        if not self._free:
            in_use = self._in_use()
            victim = next((node for node in self._kept if node not in in_use), None)
            if victim is None:
                return None
            self.forget(victim)
        return self._free.pop()

    # --- looking at the whole -----------------------------------------------------------------------------------------------------

    def check(self, nodes: Iterable[TreeNode]) -> list[str]:
        """Inconsistencies of slots; empty if there are none. `nodes`: of the tree."""
        problems = []
        with_state = {node for node in nodes if node.state >= 0}
        if with_state != set(self._kept):
            problems.append(f"{len(with_state)} nodes have states, {len(self._kept)} are known to")
        slots = [*self._free, *self._reserved, *(node.state for node in with_state)]
        for held in self._held:
            slots += [*held.slots, *(slot for _, slot in held.saves)]
        if sorted(slots) != list(range(self.num_slots)):
            problems.append(f"the {self.num_slots} slots of states have {len(slots)} owners, of {len(set(slots))} slots")
        return problems


def state_rows(held: Sequence[HeldStates], starts: Sequence[int]) -> StateRows:
    """ForwardBatch.states of a step in which requests' rows begin at these positions."""
    saves = [[(position - start, slot) for position, slot in each.saves] for each, start in zip(held, starts, strict=True)]
    flat = [pair for each in saves for pair in each]
    return StateRows(
        source=np.array([each.source for each in held], dtype=np.int32),
        target=np.array([each.slots[each.next] for each in held], dtype=np.int32),
        save_starts=np.cumsum([0, *map(len, saves)]).astype(np.int32),
        save_rows=np.array([rows for rows, _ in flat], dtype=np.int32),
        save_slots=np.array([slot for _, slot in flat], dtype=np.int32),
    )
