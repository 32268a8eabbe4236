"""The public surface: nothing missing, nothing leaking, light to import."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import sglang

NEEDS_RUNTIME = {"Engine", "ServerArgs"}
ORIGINAL = """
    function gen gen_int gen_string select image video system user assistant system_begin system_end user_begin user_end
    assistant_begin assistant_end separate_reasoning set_default_backend flush_cache get_server_info global_config __version__
    Runtime RuntimeEndpoint OpenAI Anthropic LiteLLM VertexAI token_length_normalized greedy_token_selection
    unconditional_likelihood_normalized
"""
"""names that the original exports, but for NEEDS_RUNTIME"""


def test_all_is_sorted_and_complete() -> None:
    assert sglang.__all__ == sorted(sglang.__all__)
    public = {
        name
        for name, value in vars(sglang).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and name not in ("annotations", "Any", "TYPE_CHECKING")
    }
    public |= set(sglang._LAZY)
    assert public - NEEDS_RUNTIME == set(sglang.__all__) - {"__version__"}
    assert set(sglang._LAZY) >= NEEDS_RUNTIME


def test_every_name_of_the_original_is_there() -> None:
    assert set(ORIGINAL.split()) <= set(sglang.__all__)
    assert [name for name in ORIGINAL.split() if getattr(sglang, name, None) is None] == []


def test_the_runtimes_names() -> None:
    pytest.importorskip("msgspec")
    from sglang.srt.utils import load_image

    assert isinstance(sglang.Engine, type) and isinstance(sglang.ServerArgs, type) and callable(load_image)


def test_what_notebooks_import() -> None:
    from sglang.test.test_utils import is_in_ci
    from sglang.utils import launch_server_cmd, print_highlight, terminate_process, wait_for_server

    assert all(map(callable, (is_in_ci, launch_server_cmd, print_highlight, terminate_process, wait_for_server)))


def test_star_import_works() -> None:
    names: dict[str, object] = {}
    exec("from sglang import *", names)
    assert set(sglang.__all__) <= set(names)


def test_unknown_names_are_attribute_errors() -> None:
    assert not hasattr(sglang, "no_such_name")


def test_lazy_names_are_real_classes() -> None:
    assert isinstance(sglang.RuntimeEndpoint, type)
    assert isinstance(sglang.OpenAI, type)


def test_old_import_paths() -> None:
    from sglang.api import gen
    from sglang.global_config import global_config
    from sglang.lang.api import gen as lang_gen
    from sglang.lang.backend.runtime_endpoint import Runtime
    from sglang.lang.chat_template import get_chat_template  # noqa: F401
    from sglang.lang.choices import greedy_token_selection  # noqa: F401
    from sglang.lang.global_config import global_config as lang_config
    from sglang.lang.grammar import concat
    from sglang.lang.interpreter import ProgramState
    from sglang.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR  # noqa: F401
    from sglang.lang.record import ReplayBackend  # noqa: F401
    from sglang.lang.tools import describe_tools  # noqa: F401
    from sglang.lang.typed import grammar

    assert Runtime is sglang.Runtime and concat is grammar.concat
    assert ProgramState is sglang.ProgramState
    assert gen is lang_gen is sglang.gen
    assert global_config is lang_config is sglang.global_config


def test_import_is_light() -> None:
    """What `import sglang` must not bring in: clients, arrays, the runtime."""
    code = (
        "import sys, sglang; heavy = {'httpx', 'numpy', 'torch', 'pydantic', 'tqdm', 'openai', 'tokenizers', 'sglang.srt'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_endpoint_needs_no_runtime() -> None:
    code = "import sys, sglang; sglang.RuntimeEndpoint; print(sorted({'numpy', 'torch', 'sglang.srt', 'msgspec'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
