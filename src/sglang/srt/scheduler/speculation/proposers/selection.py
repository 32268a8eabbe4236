"""Which proposer a request gets."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from sglang.srt.scheduler.speculation.proposer import Proposer
from sglang.srt.scheduler.speculation.proposers.grammar_statistics import GrammarProposer, StatisticsCache
from sglang.srt.scheduler.speculation.proposers.prompt_lookup import PromptLookup


class Proposers:
    """Owner of what proposers share."""

    def __init__(self, prompt_lookup: bool, max_grammars: int) -> None:
        """`prompt_lookup`: whether free text gets a proposer. `max_grammars`: whose statistics are kept."""
        self._prompt_lookup = prompt_lookup
        self._statistics = StatisticsCache(max_grammars)

    def for_free_text(self, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> Proposer | None:
        """For a request that begins with these tokens."""
        return PromptLookup(prompt_ids, output_ids) if self._prompt_lookup else None

    def for_grammar(self, key: Hashable) -> Proposer:
        """`key`: the grammar, and who may learn from whom."""
        return GrammarProposer(self._statistics.of(key))
