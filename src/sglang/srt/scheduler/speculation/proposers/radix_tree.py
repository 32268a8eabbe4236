"""Drafts from the prefix tree: a request whose tokens were those of an earlier one may go on as that one did.

Answers that are generated again, programs that run again at temperature 0, replays and equal forks repeat whole outputs, and the
tree holds these. Only a prompt that the tree holds whole has a path. The first sampled token that comes as expected allows a draft of two; with every right token drafts grow. A request whose
output leaves the tree is off its path for good: at most one draft, no more than twice as long as what came right, is in vain.
"""

from __future__ import annotations

from itertools import takewhile

from sglang.srt.forward_batch import Int32Array
from sglang.srt.scheduler.cache.radix_cache import MARK, RadixCache, Salt, TreeNode
from sglang.srt.scheduler.speculation.grammar_walk import draft_of
from sglang.srt.scheduler.speculation.proposer import Draft, DraftContext, DraftLimits

NAME = "radix_tree"
GROWTH = 2
"""Drafted tokens for each that came as expected."""
MAX_CHILDREN = 64
"""Beyond a fork of more branches nothing is expected: the latest of them would have to be searched for."""


class RadixTreeProposer:
    """Proposes for one request what its path in the tree says. Forced tokens are part of the path as sampled ones are."""

    forced_share = 0.0

    def __init__(self, path: TreePath) -> None:
        """`path`: of its prompt."""
        self._path = path
        self._num_followed = 0
        self._num_right = 0

    def is_confident(self, context: DraftContext, num_running: int) -> bool:
        """However many run: a right draft costs the rows that it saves."""
        return self._limit(context) > 0 and bool(self._path.expected(1))

    def propose(self, context: DraftContext, limits: DraftLimits) -> Draft | None:
        """The tokens that came next on the path, up to one that ends the request or that the grammar does not allow."""
        limit = min(self._limit(context), limits.max_ids)
        if limit <= 0:
            return None
        return draft_of(self._path.expected(limit), context, limits, NAME)

    def note_sampled(self, context: DraftContext, token_id: int) -> None:
        self._follow(context)
        if self._path.follow(token_id):
            self._num_right += 1
        self._num_followed += 1

    def _limit(self, context: DraftContext) -> int:
        """The most tokens of a draft."""
        self._follow(context)
        return GROWTH * self._num_right if self._path.is_on else 0

    def _follow(self, context: DraftContext) -> None:
        """Goes on by the tokens that were appended without being told: forced ones, and those that a resumed request began with."""
        if self._path.is_on:
            for token_id in context.output_ids[self._num_followed :]:
                self._path.follow(token_id)
            self._num_followed = len(context.output_ids)


class TreePath:
    """Follows a sequence of ids down the tree of `salt`, to see what came after the same tokens before.

        tree        "Write a haiku" ── " about rain" ── " Soft drops on the roof, ..."      an earlier request
        followed    "Write a haiku      about rain        Soft drops"      next: " on the roof"

    A path locks nothing and changes nothing. The ids of a node are never written in place, so those that the path reads stay as they
    were when the node is split or evicted. A path that reaches the end of a node which is gone by then ends there.
    """

    def __init__(self, tree: RadixCache, ids: Int32Array, salt: Salt) -> None:
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
        return list(takewhile(lambda token_id: 0 <= token_id < MARK, found))  # images and adapters have ids of their own

    @property
    def _is_in_place(self) -> bool:
        """Whether the node still is in the tree, and ends where it did: then its children follow what was read of it."""
        return self._node.parent is not None and self._node.end == self._end
