"""--chunked-prefill-size: a number of tokens, or -1; what is refused is told with both."""

from __future__ import annotations

import pytest

from sglang.srt.errors import ConfigError
from sglang.srt.server_args import ServerArgs


@pytest.mark.parametrize("chunk", [0, -2, -512, (1 << 20) + 1])
def test_a_chunk_of_no_size_is_refused_and_the_way_out_is_named(chunk: int) -> None:
    with pytest.raises(ConfigError, match=rf"--chunked-prefill-size must be between 1 and 1048576, or -1 .*got {chunk}"):
        ServerArgs(chunked_prefill_size=chunk).resolve()


@pytest.mark.parametrize("chunk", [-1, 1, 4096, 1 << 20])
def test_sizes_and_minus_one_are_taken(chunk: int) -> None:
    assert ServerArgs(chunked_prefill_size=chunk, device="cpu").resolve().schedule.chunked_prefill_size == chunk
