"""The grammar engines by name."""

from __future__ import annotations

from sglang.common.install import install_extras
from sglang.srt.config import GrammarOptions
from sglang.srt.errors import ConfigError
from sglang.srt.scheduler.grammar.engines.base import GrammarBackend
from sglang.srt.vocabulary import Vocabulary


def create_backend(vocabulary: Vocabulary | None, options: GrammarOptions, threads: bool = True) -> GrammarBackend | None:
    """The engine that `options` name; None for "none" or without a vocabulary. Without `threads` it starts none, for a process that
    forks. Raises ConfigError when it is not installed."""
    if options.backend == "none" or vocabulary is None:
        return None
    if options.backend == "llguidance":
        try:
            from sglang.srt.scheduler.grammar.engines.llguidance_backend import LLGuidanceBackend
        except ImportError as error:
            raise ConfigError(f"the grammar backend llguidance is not installed: {install_extras('srt')}") from error
        return LLGuidanceBackend(vocabulary, options, threads)
    try:
        from sglang.srt.scheduler.grammar.engines.xgrammar_backend import XGrammarBackend
    except ImportError as error:
        raise ConfigError(f"the grammar backend xgrammar is not installed: {install_extras('xgrammar')}") from error
    return XGrammarBackend(vocabulary, options, threads)
