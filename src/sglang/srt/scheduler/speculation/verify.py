"""Speculation: tokens that may come next are computed before they are drawn, and the draws at all of them happen in one step.
Under a grammar they are those that earlier outputs of the same grammar had at such a place
(speculation/proposers/grammar_statistics.py), in free text those that followed the same words in the request itself
(speculation/proposers/prompt_lookup.py).

    output      ... "age":        guessed 25 , forced ,"city":" , guessed Berlin
    rows        ... "age":   25   ,"   city   ":"   Berlin          in one step
    draws              25          -    -     Paris   (not used)    25 is as guessed, Paris is not: what follows is void

A draw depends on the tokens before it, the seed and its position alone, whoever else is in the step: so a guess changes the
number of steps and never an output. What was learnt is kept by grammar and by `cache_salt`, as long as the grammar is in use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace

from sglang.srt.forward_batch import SampleSpec
from sglang.srt.scheduler.batch import Draft, Extend
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.grammar.engines.base import GrammarState
from sglang.srt.scheduler.req import Req
from sglang.srt.scheduler.speculation.proposers.grammar_statistics import Habits

MAX_IDS = 24
"""Guessed and forced tokens of one request in one step."""
MIN_TRUST, FEW_TRUST = 0.7, 0.5
"""How likely all guesses up to a place must be for it to be worth its rows; in steps of few requests rows cost next to nothing."""
MAX_JUMPS = 0.1
"""Share of requests that may lose a step for the others' sake: running ahead saves about as much of it."""
FEW = 3
FEW_ROWS, FEW_LOOKUPS = 16, 4
"""Rows of a step, and requests that run, up to which reading the weights is most of the work: then guesses in free text pay."""


class HabitBook:
    """Owner of what was learnt: the most recently used grammars'."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[Hashable, Habits] = OrderedDict()

    def of(self, key: Hashable) -> Habits:
        """The habits of `key`, new ones if need be."""
        habits = self._entries.pop(key, None)
        if habits is None:
            habits = Habits()
        self._entries[key] = habits
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
        return habits


@dataclass
class Room:
    """What a step has left: `rows`, and rows that are drawn from (`draws`). `taken`: rows it has. `trust`: what guesses are worth
    them."""

    rows: int
    draws: int
    taken: int = 0
    trust: float = MIN_TRUST


def may_repeat(req: Req) -> bool:
    """Whether what comes may be looked up in what was there: free text, whose draws depend on nothing else."""
    return req.msg.sampling.grammar is None and not req.msg.healed and _draws_plainly(req)


def expects(req: Req, num_running: int) -> bool:
    """Whether something is known of the token that comes next, with so many running: then a draft may begin with it."""
    if req.lookup is not None:
        return num_running <= FEW_LOOKUPS and req.lookup.is_trusted
    if not _may_guess(req):
        return False
    assert req.habits is not None
    return _likely(req.habits, req.output_ids[-Habits.WIDTH :], req.num_drawn)[1] >= FEW_TRUST


def gain_by_waiting(running: list[Req]) -> bool:
    """Whether the step after the one on its way is worth more if it begins when all tokens are known. A step that ran ahead has
    one row a request: whose next token is expected has no draft in it, and whom the grammar forces further loses a step."""
    num_jumps = 0.0
    for req in running:
        if expects(req, len(running)):
            return True
        if req.habits is not None and not req.in_thought:
            num_jumps += req.habits.jump_rate
    return num_jumps > MAX_JUMPS * len(running)


def add_drafts(decodes: list[Req], extends: list[Extend], room: Room, memory: KvMemory) -> tuple[list[Req], list[Extend]]:
    """The same requests, with drafts where there is something to guess and room for it. A request that decodes and gets one
    takes part with an Extend."""
    if len(decodes) + len(extends) <= FEW:
        room.trust = FEW_TRUST
    plain: list[Req] = []
    longer: list[Extend] = []
    for req in decodes:
        draft = _draft(req, room, memory)
        if draft is None:
            plain.append(req)
            continue
        assert req.hold is not None
        longer.append(Extend(req, req.hold.kv_len, req.fill_len, True, False, is_jump=True, draft=draft))
    for extend in extends:
        draft = _draft(extend.req, room, memory) if extend.completes else None
        longer.append(extend if draft is None else replace(extend, draft=draft))
    return plain, longer


def _draft(req: Req, room: Room, memory: KvMemory) -> Draft | None:
    """What `req` may go on with. Its slots are reserved."""
    if room.draws <= 0 or req.ending is not None:
        return None
    assert req.hold is not None
    limit = min(MAX_IDS, room.rows, req.num_left - 1, memory.rows.context_len - req.fill_len - 1)
    if req.lookup is not None:
        draft = _look_up(req, min(limit, room.draws, FEW_ROWS - room.taken))
    else:
        draft = _guess(req, limit, room.draws, room.trust) if _may_guess(req) else None
    if draft is None or not memory.grow_idle(req.hold, req.fill_len + len(draft.ids)):
        return None
    room.rows -= len(draft.ids)
    room.taken += len(draft.ids)
    room.draws -= len(draft.points)
    return draft


def _draws_plainly(req: Req) -> bool:
    """Whose draws depend on nothing but masks and logits, and whose rows are text."""
    params = req.msg.sampling
    plain = not params.logit_bias and params.repetition_penalty == 1.0
    plain = plain and params.frequency_penalty == 0.0 and params.presence_penalty == 0.0
    return plain and req.msg.logprobs is None and req.media is None


def _may_guess(req: Req) -> bool:
    """Who is to be given guesses by its grammar's habits."""
    return req.grammar is not None and not req.in_thought and req.habits is not None and _draws_plainly(req)


def _look_up(req: Req, limit: int) -> Draft | None:
    assert req.lookup is not None
    if limit <= 0:
        return None
    ids: list[int] = []
    for token in req.lookup.guesses(limit):
        if token in req.finish.stop_ids:
            break
        ids.append(token)
    if not ids:
        return None
    points = list(range(1, len(ids) + 1))
    return Draft(ids, points, [], [_spec_after(req, ids[:point]) for point in points])


def _guess(req: Req, max_ids: int, max_draws: int, min_trust: float) -> Draft | None:
    assert req.grammar is not None and req.habits is not None
    ids: list[int] = []
    points: list[int] = []
    states: list[GrammarState] = []
    recent, num_drawn, trust, state = req.output_ids[-Habits.WIDTH :], req.num_drawn, 1.0, req.grammar
    stop_ids = req.finish.stop_ids
    while len(points) < max_draws and len(ids) < max_ids:
        token, confidence, must_end = _likely(req.habits, recent, num_drawn)
        trust *= confidence
        if trust < min_trust or token in stop_ids:
            break
        state = state.copy()
        if not state.accept(token) or state.is_finished:
            break
        forced = state.forced_tokens()
        if (must_end and not forced) or len(ids) + 1 + len(forced) > max_ids:
            break
        if forced and (not state.accept_all(forced) or state.is_finished):
            break
        if state.error is not None:
            break
        more = [token, *forced]
        ids += more
        points.append(len(ids))
        states.append(state)
        recent = (recent + more)[-Habits.WIDTH :]
        num_drawn = num_drawn + 1 if len(more) == 1 else 0
    if not ids:
        return None
    specs = [_spec_after(req, ids[:point]) for point in points]
    return Draft(ids, points, states, specs)


def _likely(habits: Habits, recent: list[int], num_drawn: int) -> tuple[int, float, bool]:
    """The next token, how likely it is, and whether it is of use only if a value ends with it."""
    token, confidence = habits.guess(recent)
    if must_end := confidence == 0.0:
        token, confidence = habits.guess_end(recent, num_drawn)
    return token, confidence, must_end


def _spec_after(req: Req, ids: list[int]) -> SampleSpec:
    spec = req.spec
    return SampleSpec(spec.params, spec.seed, spec.prompt_ids, spec.output_ids + ids, spec.eos_ids)
