"""Follows the tokens of one request down the prefix tree, to see what came after the same tokens before.

    tree        "Write a haiku" ── " about rain" ── " Soft drops on the roof, ..."      an earlier request
    followed    "Write a haiku      about rain        Soft drops"      next: " on the roof"

A path locks nothing and changes nothing. The ids of a node are never written in place, so those that the path reads stay as they
were when the node is split or evicted. A path that reaches the end of a node which is gone by then ends there.
"""

from __future__ import annotations

from sglang.srt.forward_batch import Int32Array
from sglang.srt.scheduler.cache.radix_cache import RadixCache, TreeNode

MAX_CHILDREN = 64
"""Beyond a fork of more branches nothing is expected: the latest of them would have to be searched for."""


class TreePath:
    """Where a sequence of ids stands in the tree of `salt`."""

    def __init__(self, tree: RadixCache, ids: Int32Array, salt: str | None) -> None:
        self._tree = tree
        reached, node = tree.match_len(ids, salt)
        self._node = node
        self._end = node.end
        self._ids = node.ids  # [node_len]
        self._at = reached - (node.end - len(node.ids))
        self.is_on = node.parent is not None
        """whether all ids so far are in the tree"""
        for token_id in ids[reached:].tolist():  # less than a page, or off the tree
            if not self.follow(token_id):
                break

    def follow(self, token_id: int) -> bool:
        """Goes on by a token; False when the tree does not hold it there, then and ever after."""
        if self.is_on and self._at == len(self._ids):
            node = self._tree.next_node(self._node, token_id) if self._is_in_place else None
            if node is None:
                self.is_on = False
            else:
                self._node, self._end, self._ids, self._at = node, node.end, node.ids, 0
        self.is_on = self.is_on and int(self._ids[self._at]) == token_id
        self._at += self.is_on
        return self.is_on

    def expected(self, limit: int) -> list[int]:
        """At most `limit` tokens that came next; where several branches go on, those of the latest."""
        if not self.is_on or limit <= 0:
            return []
        found: list[int] = self._ids[self._at : self._at + limit].tolist()
        node: TreeNode | None = self._node if self._is_in_place else None
        while node is not None and len(found) < limit:
            children = node.children.values()
            node = max(children, key=lambda child: child.last_access) if 0 < len(children) <= MAX_CHILDREN else None
            if node is not None:
                found += node.ids[: limit - len(found)].tolist()
        return found

    @property
    def _is_in_place(self) -> bool:
        """Whether the node still is in the tree, and ends where it did: then its children follow what was read of it."""
        return self._node.parent is not None and self._node.end == self._end
