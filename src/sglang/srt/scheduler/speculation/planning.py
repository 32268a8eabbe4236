"""Which proposer a request gets, and which requests get drafts in the next step."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from sglang.srt.scheduler.batch import Extend
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.cache.radix_cache import RadixCache
from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.speculation.proposer import Draft, DraftContext, DraftLimits, Proposer
from sglang.srt.scheduler.speculation.proposers.grammar_statistics import GrammarProposer, StatisticsCache
from sglang.srt.scheduler.speculation.proposers.prompt_lookup import PromptLookup
from sglang.srt.scheduler.speculation.proposers.radix_tree import RadixTreeProposer, TreePath

MAX_IDS = 24
"""Tokens of one draft."""
MAX_FORCED_SHARE = 0.1
"""Share of requests that may lose a step for the others' sake: running ahead saves about as much of it."""


@dataclass
class DraftBudget:
    """The room that a step has left for drafts: `rows`, and `samples`, rows that are sampled from. `taken`: rows it has."""

    rows: int
    samples: int
    taken: int = 0


def is_confident(req: Req, num_running: int) -> bool:
    """Whether something is known of the token that comes next, with so many requests running: then a draft may begin with it."""
    proposer = req.active_proposer
    return proposer is not None and proposer.is_confident(req, num_running)


def gains_by_waiting(running: list[Req]) -> bool:
    """Whether the step after the one on its way is worth more if it begins when all tokens are known. A step that ran ahead has
    one row a request: a request with a likely draft gets none, and one whose grammar forces more tokens loses a step."""
    forced = 0.0
    for req in running:
        if is_confident(req, len(running)):
            return True
        if req.proposer is not None and not req.in_reasoning:
            forced += req.proposer.forced_share
    return forced > MAX_FORCED_SHARE * len(running)


def add_drafts(
    decodes: list[Req], extends: list[Extend], budget: DraftBudget, memory: KvMemory
) -> tuple[list[Req], list[Extend]]:
    """The same requests, with drafts where something is likely and the budget allows it. A request that decodes and gets a draft
    takes part with an Extend."""
    num_reqs = len(decodes) + len(extends)
    plain: list[Req] = []
    longer: list[Extend] = []
    for req in decodes:
        draft = _draft(req, num_reqs, budget, memory)
        if draft is None:
            plain.append(req)
            continue
        assert req.hold is not None
        longer.append(Extend(req, req.hold.kv_len, req.fill_len, True, False, is_jump=True, draft=draft))
    for extend in extends:
        draft = _draft(extend.req, num_reqs, budget, memory) if extend.completes else None
        longer.append(extend if draft is None else replace(extend, draft=draft))
    return plain, longer


def _draft(req: Req, num_reqs: int, budget: DraftBudget, memory: KvMemory) -> Draft | None:
    """A draft for `req`, whose slots are reserved and taken from the budget."""
    proposer = req.active_proposer
    if proposer is None or budget.samples <= 0 or req.ending is not None:
        return None
    assert req.hold is not None
    max_ids = min(MAX_IDS, budget.rows, req.num_left - 1, memory.rows.context_len - req.fill_len - 1)
    draft = proposer.propose(req, DraftLimits(max_ids, budget.samples, budget.taken, num_reqs))
    if draft is None or not memory.grow_idle(req.hold, req.fill_len + len(draft.ids)):
        return None
    budget.rows -= len(draft.ids)
    budget.taken += len(draft.ids)
    budget.samples -= len(draft.points)
    return draft


class FirstOf:
    """Several proposers of one request: the first that has a draft proposes."""

    def __init__(self, *proposers: Proposer) -> None:
        self._proposers = proposers

    @property
    def forced_share(self) -> float:
        return max(proposer.forced_share for proposer in self._proposers)

    def is_confident(self, context: DraftContext, num_running: int) -> bool:
        return any(proposer.is_confident(context, num_running) for proposer in self._proposers)

    def propose(self, context: DraftContext, limits: DraftLimits) -> Draft | None:
        drafts = (proposer.propose(context, limits) for proposer in self._proposers)
        return next((draft for draft in drafts if draft is not None), None)

    def note_sampled(self, context: DraftContext, token_id: int) -> None:
        for proposer in self._proposers:
            proposer.note_sampled(context, token_id)


class Proposers:
    """Owner of what proposers share."""

    def __init__(self, in_free_text: bool, max_grammars: int, tree: RadixCache) -> None:
        """`in_free_text`: whether free text gets proposers. `max_grammars`: grammars whose statistics are kept. `tree`: the prefix tree."""
        self._in_free_text = in_free_text
        self._statistics = StatisticsCache(max_grammars)
        self._tree = tree

    def for_free_text(self, req: Req) -> Proposer | None:
        """The proposer of a request without a grammar, before it begins; a resumed one has tokens already."""
        if not self._in_free_text:
            return None
        return self._behind_tree(req, PromptLookup(req.msg.input_ids, req.msg.resumed or ()))

    def for_grammar(self, req: Req, grammar: Hashable) -> Proposer:
        """The proposer of a request with a grammar, before it begins. Requests of one grammar, salt and adapter share statistics."""
        return self._behind_tree(req, GrammarProposer(self._statistics.of((grammar, req.salt, req.adapter))))

    def _behind_tree(self, req: Req, proposer: Proposer) -> Proposer:
        """The tree's proposer comes first where the tree holds the whole prompt, but for less than a page."""
        reached, _ = self._tree.match_len(req.prompt, req.salt)
        if len(req.prompt) - reached >= self._tree.page_size:
            return proposer
        return FirstOf(RadixTreeProposer(TreePath(self._tree, req.prompt, req.salt)), proposer)
