"""The prefix cache: a radix tree from token ids to the slots that hold their keys and values.

    root ── "You are a helpful" ──┬── " assistant. Hi"          a node has the ids since its parent, their slots,
                                  └── " poet."── " Write"        and a lock count; the path from the root is the prefix

- A request that runs locks its node, and with it the path to the root: none of it can be evicted.
- Leaves that nobody locks are evicted least recently used first, from their ends.
- Ids match in multiples of `page_size`. Each `salt` has its own tree and shares nothing.

Idea: RadixAttention (Zheng et al., SGLang, arXiv 2312.07104). `ChunkCache` has the same interface and remembers nothing.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sglang.srt.forward_batch import Int32Array

Key = int | bytes
Salt = str | tuple[int, str | None] | None
"""names a tree: what requests say, or with the uid of the adapter that they have"""
MARK = 1 << 24
"""added to the uid of an activated adapter: the id in the tree where it begins to act (scheduler/adapters.py). No vocabulary is so large"""
_EMPTY: Int32Array = np.zeros(0, dtype=np.int32)
_node_ids = itertools.count()


class TreeNode:
    """Ids [end - len(ids), end) of the prefixes that pass through it."""

    __slots__ = (
        "children",
        "end",
        "id",
        "ids",
        "in_heap",
        "last_access",
        "lock_ref",
        "num_hits",
        "parent",
        "salt",
        "slots",
        "state",
    )

    def __init__(self, parent: TreeNode | None, ids: Int32Array, slots: Int32Array, end: int) -> None:
        self.parent = parent
        self.ids = ids
        self.slots = slots
        self.end = end
        self.children: dict[Key, TreeNode] = {}
        self.lock_ref = 0
        self.last_access = 0
        self.num_hits = 0  # requests that found it here
        self.in_heap = False
        self.salt: Salt = None  # of a root
        self.state = -1  # the slot of the state at its end, if one is kept (states.py)
        self.id = next(_node_ids)

    def path(self) -> tuple[Int32Array, Int32Array, Salt]:
        """The prefix that ends here: its ids, their slots, and the tree's salt."""
        nodes: list[TreeNode] = []
        at = self
        while at.parent is not None:
            nodes.append(at)
            at = at.parent
        nodes.reverse()
        return np.concatenate([node.ids for node in nodes]), np.concatenate([node.slots for node in nodes]), at.salt


@dataclass(frozen=True)
class Match:
    """The longest cached prefix: its slots and the node where it ends. `branch`: how far K and V alone are known beyond a state that
    it ends at, if that is worth a state (states.py)."""

    slots: Int32Array
    node: TreeNode
    branch: int = 0


@dataclass(frozen=True)
class Inserted:
    """`tree_len`: how many of the ids the tree now holds; of these, the first `existing_len` were there before, in slots of
    the tree's own. The tree took over the slots between."""

    tree_len: int
    existing_len: int
    node: TreeNode


def _common_len(a: Int32Array, b: Int32Array) -> int:
    n = min(len(a), len(b))
    equal = a[:n] == b[:n]
    return n if equal.all() else int(np.argmin(equal))


class TreeObserver(Protocol):
    """Observes every change of the trees (viewing.py)."""

    def changed(self, node: TreeNode) -> None:
        """It is new, or its ids, its parent, its hits or whether it is locked have changed."""
        ...

    def removed(self, node: TreeNode) -> None: ...


class RadixCache:
    """Owns the trees and the slots in them. `free` gets the slots of what is evicted; `run` is the pool's run of slots."""

    def __init__(self, free: Callable[[Int32Array], None], page_size: int = 1, run: int = 1) -> None:
        self._free = free
        self.page_size = page_size
        self._cut = int(np.lcm(run, page_size))
        self._roots: dict[Salt, TreeNode] = {}
        self._heap: list[tuple[int, int, TreeNode]] = []
        self._clock = 0
        self.observer: TreeObserver | None = None
        self.evicting: Callable[[TreeNode, int], None] | None = None
        """is called before the end of a node goes, with the length of what stays"""
        self.dropping: Callable[[TreeNode], None] | None = None
        """is called before a node with a state goes, or ends elsewhere"""
        self.num_evictable = 0
        self.num_locked = 0
        self.version = 0
        """changes whenever a match may come out differently"""

    # --- looking up ---------------------------------------------------------------------------------------------------------

    def match_prefix(self, ids: Int32Array, salt: Salt = None) -> Match:
        """The longest cached prefix of `ids`. Splits the last node if the match ends inside it, so that exactly the match can
        be locked."""
        node = self._root(salt)
        parts: list[Int32Array] = []
        pos = 0
        self._clock += 1
        node.last_access = self._clock
        while (child := self._child(node, ids, pos)) is not None:
            n = self._shared_len(child, ids, pos)
            if n == 0:
                break
            if n < len(child.ids):
                child = self._split(child, n)
            child.last_access = self._clock
            parts.append(child.slots)
            pos += n
            node = child
        return Match(np.concatenate(parts) if parts else _EMPTY, node)

    def match_len(self, ids: Int32Array, salt: Salt = None) -> tuple[int, TreeNode]:
        """Length of the longest cached prefix and the node it reaches into. Changes nothing."""
        node = self._root(salt)
        pos = 0
        while (child := self._child(node, ids, pos)) is not None:
            n = self._shared_len(child, ids, pos)
            if n == 0:
                break
            pos += n
            node = child
            if n < len(child.ids):
                break
        return pos, node

    def next_node(self, node: TreeNode, token_id: int) -> TreeNode | None:
        """The child of `node` that begins with the token; with pages of several tokens, the latest such child."""
        if self.page_size == 1:
            return node.children.get(token_id)
        found = [child for child in node.children.values() if child.ids[0] == token_id]
        return max(found, key=lambda child: child.last_access, default=None)

    def _root(self, salt: Salt) -> TreeNode:
        """The tree of `salt`; a new root belongs to the forest only once something hangs on it."""
        root = self._roots.get(salt)
        if root is None:
            root = TreeNode(None, _EMPTY, _EMPTY, 0)
            root.salt = salt
        return root

    def _key(self, ids: Int32Array, pos: int) -> Key:
        return int(ids[pos]) if self.page_size == 1 else ids[pos : pos + self.page_size].tobytes()

    def _child(self, node: TreeNode, ids: Int32Array, pos: int) -> TreeNode | None:
        if pos + self.page_size > len(ids):
            return None
        return node.children.get(self._key(ids, pos))

    def _shared_len(self, child: TreeNode, ids: Int32Array, pos: int) -> int:
        n = _common_len(child.ids, ids[pos : pos + len(child.ids)])
        return n - n % self.page_size

    # --- growing ------------------------------------------------------------------------------------------------------------

    def insert(self, ids: Int32Array, slots: Int32Array, salt: Salt = None) -> Inserted:
        """Enters a prefix, as far as whole pages go. The tree takes over `slots[existing_len:tree_len]`; all others stay with
        the caller."""
        tree_len = len(ids) - len(ids) % self.page_size
        match = self.match_prefix(ids[:tree_len], salt)
        node, existing = match.node, len(match.slots)
        if existing < tree_len:
            leaf = TreeNode(node, ids[existing:tree_len].copy(), slots[existing:tree_len].copy(), tree_len)
            leaf.last_access = self._clock
            node.children[self._key(leaf.ids, 0)] = leaf
            if node.parent is None:
                self._roots[salt] = node
            self.num_evictable += len(leaf.ids)
            self._offer(leaf)
            self.version += 1
            if self.observer is not None:
                self.observer.changed(leaf)
            node = leaf
        return Inserted(tree_len, existing, node)

    def _split(self, child: TreeNode, n: int) -> TreeNode:
        """Puts a node of `child`'s first n ids above it, and returns that. `child` keeps its identity: requests that locked it
        locks both."""
        assert child.parent is not None
        upper = TreeNode(child.parent, child.ids[:n].copy(), child.slots[:n].copy(), child.end - len(child.ids) + n)
        upper.lock_ref, upper.num_hits = child.lock_ref, child.num_hits
        upper.last_access = child.last_access
        child.parent.children[self._key(upper.ids, 0)] = upper
        child.parent = upper
        child.ids = child.ids[n:].copy()
        child.slots = child.slots[n:].copy()
        upper.children[self._key(child.ids, 0)] = child
        if self.observer is not None:
            self.observer.changed(upper)
            self.observer.changed(child)
        return upper

    # --- locking ------------------------------------------------------------------------------------------------------------

    def lock(self, node: TreeNode) -> None:
        """Keeps the prefix that ends at `node` from eviction."""
        at: TreeNode | None = node
        while at is not None and at.parent is not None:
            if at.lock_ref == 0:
                self.num_evictable -= len(at.ids)
                self.num_locked += len(at.ids)
                if self.observer is not None:
                    self.observer.changed(at)
            at.lock_ref += 1
            at = at.parent

    def unlock(self, node: TreeNode) -> None:
        """Undoes one `lock` of the same node."""
        self._clock += 1
        at: TreeNode | None = node
        while at is not None and at.parent is not None:
            assert at.lock_ref > 0, "unlocking a node that is not locked"
            at.lock_ref -= 1
            at.last_access = self._clock
            if at.lock_ref == 0:
                self.num_evictable += len(at.ids)
                self.num_locked -= len(at.ids)
                self._offer(at)
                if self.observer is not None:
                    self.observer.changed(at)
            at = at.parent

    def note_hit(self, node: TreeNode) -> None:
        """A request has found the prefix that ends at `node`."""
        at: TreeNode | None = node
        while at is not None and at.parent is not None:
            at.num_hits += 1
            if self.observer is not None:
                self.observer.changed(at)
            at = at.parent

    # --- shrinking ----------------------------------------------------------------------------------------------------------

    def _offer(self, node: TreeNode) -> None:
        """Remembers a node that may be evicted. The heap may be out of date: `evict` looks again."""
        if not node.in_heap and not node.children and node.lock_ref == 0 and node.parent is not None:
            node.in_heap = True
            heapq.heappush(self._heap, (node.last_access, node.id, node))

    def evict(self, num_tokens: int) -> int:
        """Frees the end of the least recently used leaf, as much of it as is wanted, cut where a run of slots begins. Returns
        how many tokens that were; 0 when nothing can be evicted."""
        while self._heap:
            accessed, _, node = heapq.heappop(self._heap)
            node.in_heap = False
            if node.lock_ref or node.children or node.parent is None:
                continue
            if node.last_access > accessed:
                self._offer(node)
                continue
            start = node.end - len(node.ids)
            keep = max(max(node.end - num_tokens, 0) // self._cut * self._cut - start, 0)
            if self.evicting is not None:
                self.evicting(node, keep)
            return self._shorten(node, keep) if keep else self._remove(node)
        return 0

    def _shorten(self, node: TreeNode, keep: int) -> int:
        gone = node.slots[keep:]
        self._drop_state(node)
        node.end -= len(gone)
        node.ids, node.slots = node.ids[:keep].copy(), node.slots[:keep].copy()
        self._offer(node)
        if self.observer is not None:
            self.observer.changed(node)
        return self._give_back(gone)

    def _remove(self, node: TreeNode) -> int:
        parent = node.parent
        assert parent is not None
        self._drop_state(node)
        del parent.children[self._key(node.ids, 0)]
        node.parent = None
        if self.observer is not None:
            self.observer.removed(node)
        if parent.parent is None and not parent.children:
            del self._roots[parent.salt]
        else:
            self._offer(parent)
        return self._give_back(node.slots)

    def _drop_state(self, node: TreeNode) -> None:
        if node.state >= 0 and self.dropping is not None:
            self.dropping(node)

    def _give_back(self, slots: Int32Array) -> int:
        self.num_evictable -= len(slots)
        self.version += 1
        self._free(slots)
        return len(slots)

    def forget_adapter(self, uid: int) -> None:
        """Frees what the rows of an adapter have left, save for what is locked. Takes time with the size of the trees."""
        mark = MARK + uid
        gone: dict[TreeNode, int] = {}  # and how many of its ids stay; parents before their children
        for node in self.nodes():
            parent, at = node.parent, np.flatnonzero(node.ids == mark)
            assert parent is not None
            if parent in gone or (isinstance(parent.salt, tuple) and parent.salt[0] == uid):
                gone[node] = 0
            elif len(at):
                start = node.end - len(node.ids)
                gone[node] = max((start + int(at[0])) // self._cut * self._cut - start, 0)
        for node, keep in reversed(gone.items()):
            if not node.children and not node.lock_ref:
                self._shorten(node, keep) if keep else self._remove(node)
        self._heap = [entry for entry in self._heap if entry[2].parent is not None]
        heapq.heapify(self._heap)

    def reset(self) -> None:
        """Forgets everything. Nothing may be locked."""
        assert self.num_locked == 0, "the cache is in use"
        evicting, self.evicting = self.evicting, None
        while self.evict(self.num_evictable):
            pass
        self.evicting = evicting

    # --- looking at the whole -----------------------------------------------------------------------------------------------

    def roots(self) -> list[TreeNode]:
        return list(self._roots.values())

    def nodes(self) -> Iterator[TreeNode]:
        """All nodes but the roots."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            if node.parent is not None:
                yield node

    def slots(self) -> Int32Array:
        """All slots that the trees own."""
        parts = [node.slots for node in self.nodes()]
        return np.concatenate(parts) if parts else _EMPTY

    def check(self) -> list[str]:
        """Inconsistencies of the trees; empty if there are none."""
        problems = []
        evictable = locked = 0
        for node in self.nodes():
            parent = node.parent
            assert parent is not None
            if len(node.ids) != len(node.slots) or not len(node.ids) or len(node.ids) % self.page_size:
                problems.append(f"node {node.id} has {len(node.ids)} ids and {len(node.slots)} slots")
            if parent.children.get(self._key(node.ids, 0)) is not node or node.end != parent.end + len(node.ids):
                problems.append(f"node {node.id} does not hang where it should")
            if parent.parent is not None and parent.lock_ref < node.lock_ref:
                problems.append(f"node {node.id} is locked more often than its parent")
            if node.lock_ref:
                locked += len(node.ids)
            else:
                evictable += len(node.ids)
                if not node.children and not node.in_heap:
                    problems.append(f"leaf {node.id} can never be evicted")
        if (evictable, locked) != (self.num_evictable, self.num_locked):
            problems.append(f"{evictable} + {locked} tokens in the tree, counted {self.num_evictable} + {self.num_locked}")
        return problems


class ChunkCache(RadixCache):
    """A prefix cache that holds nothing: requests own all their slots (--disable-radix-cache)."""

    def insert(self, ids: Int32Array, slots: Int32Array, salt: Salt = None) -> Inserted:
        return Inserted(0, 0, self._root(None))
