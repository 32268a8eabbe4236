"""Which proposer a request gets, and which requests get drafts in the next step."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from sglang.common.lru import LruCache
from sglang.srt.messages import DraftCounts
from sglang.srt.scheduler.batch import Extend, ScheduleBatch
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.cache.radix_cache import RadixCache
from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.speculation.draft.chain import DraftChain
from sglang.srt.scheduler.speculation.draft.model import NAME as DRAFT_MODEL
from sglang.srt.scheduler.speculation.draft.model import DraftModel
from sglang.srt.scheduler.speculation.proposer import Draft, DraftContext, DraftLimits, Proposer
from sglang.srt.scheduler.speculation.proposers.grammar_statistics import GrammarProposer, GrammarStatistics
from sglang.srt.scheduler.speculation.proposers.radix_tree import RadixTreeProposer, TreePath
from sglang.srt.scheduler.speculation.proposers.repeated_text import MAX_TABLES, NgramTable, PromptLookup, TableProposer

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
    decodes: list[Req], extends: list[Extend], budget: DraftBudget, memory: KvMemory, proposers: Proposers
) -> tuple[list[Req], list[Extend]]:
    """The same requests, with drafts where something is likely and the budget allows it. A request that decodes and gets a draft
    takes part with an Extend."""
    if memory.states is not None:  # they would have to go back to where a draft fails
        return decodes, extends
    num_reqs = len(decodes) + len(extends)
    proposers.prepare([*decodes, *(e.req for e in extends if e.is_jump and e.completes)], num_reqs, budget)
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

    def confident(self, context: DraftContext, num_running: int) -> Proposer | None:
        """Who is going to propose."""
        return next((one for one in self._proposers if one.is_confident(context, num_running)), None)

    @property
    def last(self) -> Proposer:
        return self._proposers[-1]

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

    def __init__(self, in_free_text: bool, max_grammars: int, tree: RadixCache, draft_model: DraftModel | None = None) -> None:
        """`in_free_text`: whether free text gets proposers besides the draft model. `max_grammars`: grammars whose statistics are kept.
        `tree`: the prefix tree."""
        self._in_free_text = in_free_text
        self._statistics: LruCache[Hashable, GrammarStatistics] = LruCache(max_grammars)
        self._tables: dict[Hashable, NgramTable] = {}  # least recently used first
        self._tree = tree
        self.draft_model = draft_model

    def for_free_text(self, req: Req) -> Proposer | None:
        """The proposer of a request without a grammar, before it begins; a resumed one has tokens already."""
        found: list[Proposer] = []
        if self._in_free_text:
            lookup = PromptLookup(req.msg.input_ids, req.msg.resumed or ())
            found = [*self._along_tree(req), lookup, self._by_table(req)]
        return _first_of(found + self._chain(req))

    def for_grammar(self, req: Req, grammar: Hashable) -> Proposer:
        """The proposer of a request with a grammar, before it begins. Requests of one grammar, salt and adapter share statistics."""
        statistics = self._statistics.get_or_put((grammar, req.salt, req.adapter), GrammarStatistics)
        return FirstOf(*self._along_tree(req), GrammarProposer(statistics), self._by_table(req), *self._chain(req))

    def _along_tree(self, req: Req) -> list[Proposer]:
        """The tree's proposer, where the tree holds the whole prompt, but for less than a page."""
        reached, _ = self._tree.match_len(req.prompt, req.salt)
        if len(req.prompt) - reached >= self._tree.page_size:
            return []
        return [RadixTreeProposer(TreePath(self._tree, req.prompt, req.salt))]

    def _by_table(self, req: Req) -> Proposer:
        """The proposer of the table that requests of one salt and adapter share."""
        key = (req.salt, req.adapter)
        table = self._tables.pop(key) if key in self._tables else NgramTable()
        self._tables[key] = table
        if len(self._tables) > MAX_TABLES:
            del self._tables[next(iter(self._tables))]
        return TableProposer(table, req.msg.input_ids)

    # --- the draft model ------------------------------------------------------------------------------------------------------

    def _chain(self, req: Req) -> list[Proposer]:
        if self.draft_model is None or not req.takes_drafts:
            return []
        return [DraftChain(self.draft_model, req)]

    def follow(self, extends: list[Extend], num_running: int) -> None:
        """The draft model computes prompts beside the model, as far as it pays."""
        if self.draft_model is None:
            return
        for extend in extends:
            if _chain_of(extend.req) is not None:
                self.draft_model.follow(extend.req, extend.end, extend.length, num_running + 1)

    def prepare(self, reqs: list[Req], num_reqs: int, budget: DraftBudget) -> None:
        """Has the draft model draft for those of the requests for which nothing else does. All of them run."""
        model = self.draft_model
        if model is None:
            return
        chains = [chain for req in reqs if (chain := self._leading_chain(req, num_reqs)) is not None]
        if not chains:
            return
        behind = sum(max(model.behind(chain.req), 0) for chain in chains)
        planned = model.lengths.lengths([chain.rate for chain in chains], num_reqs, behind)
        wanted: dict[DraftChain, DraftLimits] = {}
        for chain, length in zip(chains, planned, strict=True):
            limits = _chain_limits(chain, chain.length(length), budget, len(chains), num_reqs)
            if limits.max_ids > 0 and limits.max_samples > 0:
                wanted[chain] = limits
        drafts = model.draft([(chain.req, limits) for chain, limits in wanted.items()]) if wanted else {}
        for chain in chains:
            chain.ready = drafts.get(chain.req)

    def _leading_chain(self, req: Req, num_reqs: int) -> DraftChain | None:
        proposer, chain = req.active_proposer, _chain_of(req)
        if proposer is None or chain is None or req.ending is not None:
            return None
        leader = proposer.confident(req, num_reqs) if isinstance(proposer, FirstOf) else proposer
        return chain if leader is chain and chain.is_confident(req, num_reqs) else None

    def note_step(self, batch: ScheduleBatch, drafts: dict[str, DraftCounts]) -> None:
        """A step has been committed, with such drafts."""
        if self.draft_model is None:
            return
        counts = drafts.get(DRAFT_MODEL) if len(drafts) == 1 else None
        num_reqs, has_prompts = len(batch.sampled), any(not extend.is_jump for extend in batch.extends)
        num_tokens = num_reqs + (counts.accepted if counts is not None else 0)
        drafted, rows = counts is not None and not has_prompts, batch.forward.num_tokens
        self.draft_model.note_step(num_reqs, rows, num_tokens, drafted, is_plain=not batch.extends)

    def note_pause(self) -> None:
        """No step has been computed."""
        if self.draft_model is not None:
            self.draft_model.note_pause()

    def flush(self) -> None:
        """Forgets what requests have said. None is alive."""
        self._statistics.clear()
        self._tables.clear()
        if self.draft_model is not None:
            self.draft_model.flush()

    def close(self) -> None:
        """Ends the draft model."""
        if self.draft_model is not None:
            self.draft_model.close()

    def check_integrity(self) -> list[str]:
        """Inconsistencies of the draft model's memory."""
        return self.draft_model.check_integrity() if self.draft_model is not None else []


def _first_of(found: list[Proposer]) -> Proposer | None:
    return FirstOf(*found) if len(found) > 1 else next(iter(found), None)


def _chain_of(req: Req) -> DraftChain | None:
    """The draft model's proposer stands last."""
    last = req.proposer.last if isinstance(req.proposer, FirstOf) else req.proposer
    return last if isinstance(last, DraftChain) else None


def _chain_limits(chain: DraftChain, length: int, budget: DraftBudget, num_chains: int, num_reqs: int) -> DraftLimits:
    """For a draft of so many sampled tokens. Under a grammar forced ones lie between them."""
    req = chain.req
    ids = min(MAX_IDS if req.grammar is not None else length, budget.rows // num_chains, req.num_left - 1)
    return DraftLimits(ids, min(length, budget.samples // num_chains), budget.taken, num_reqs)
