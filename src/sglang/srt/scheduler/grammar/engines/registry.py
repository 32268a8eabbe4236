"""The grammar engines by name. They are imported when one is made: it may not be installed."""

from __future__ import annotations

from sglang.common.install import install_extras
from sglang.srt.config import GrammarOptions
from sglang.srt.errors import ConfigError
from sglang.srt.scheduler.grammar.engines.base import GrammarBackend
from sglang.srt.vocabulary import Vocabulary


def _llguidance(vocabulary: Vocabulary, options: GrammarOptions, threads: bool) -> GrammarBackend:
    from sglang.srt.scheduler.grammar.engines.llguidance_backend import LLGuidanceBackend

    return LLGuidanceBackend(vocabulary, options, threads)


def _xgrammar(vocabulary: Vocabulary, options: GrammarOptions, threads: bool) -> GrammarBackend:
    from sglang.srt.scheduler.grammar.engines.xgrammar_backend import XGrammarBackend

    return XGrammarBackend(vocabulary, options, threads)


ENGINES = {"llguidance": (_llguidance, "srt"), "xgrammar": (_xgrammar, "xgrammar")}
"""name -> who makes it, and the extra that installs it"""


def create_backend(vocabulary: Vocabulary | None, options: GrammarOptions, threads: bool = True) -> GrammarBackend | None:
    """The engine that `options` name; None for "none" or without a vocabulary. Without `threads` it starts none, for a process that
    forks. Raises ConfigError when it is not installed."""
    if options.backend == "none" or vocabulary is None:
        return None
    create, extra = ENGINES[options.backend]
    try:
        return create(vocabulary, options, threads)
    except ImportError as error:
        raise ConfigError(f"the grammar backend {options.backend} is not installed: {install_extras(extra)}") from error
