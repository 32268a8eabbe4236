"""The table of changes in docs/architecture.md is true: made-up parameters, families, engines... are put into a copy of the sources,
in the files that the table names and no others, and work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from importlinter import api

import sglang

SOURCES = Path(sglang.__file__).parent
ROOT = SOURCES.parents[1]
TABLE = ROOT / "docs" / "architecture.md"
Edits = dict[str, tuple[str, str]]
"""file -> (text that stands there once, what it becomes)"""


def before(line: str, new: str) -> tuple[str, str]:
    """`new` is put before the line that begins with `line`."""
    return f"\n{line}", f"\n{new}{line}"


def after(text: str, new: str) -> tuple[str, str]:
    return text, text + new


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's sources, to be changed."""
    return Path(shutil.copytree(SOURCES, tmp_path / "sglang", ignore=shutil.ignore_patterns("__pycache__", "*.so")))


def change(copy: Path, edits: Edits) -> None:
    for file, (old, new) in edits.items():
        text = (copy / file).read_text()
        assert text.count(old) == 1, f"{file} does not hold {old!r} once"
        (copy / file).write_text(text.replace(old, new))


def check_row(change: str, files: Iterable[str]) -> None:
    """The row of the table names every one of the files, or its folder, and pyproject.toml if a new one needs a layer there."""
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith(f"| {change} |")]
    named = re.findall(r"`([^`]*)`", rows[0])
    contracts = api.read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    layered = {contract["containers"][0] for contract in contracts if contract["type"] == "layers"}
    for file in files:
        assert any(name.removesuffix("x.py") in f"sglang/{file}" for name in named), f"{file} is not in {rows[0]}"
        is_new, package = not (SOURCES / file).exists(), ".".join(["sglang", *Path(file).parent.parts])
        assert not is_new or package not in layered or "pyproject.toml" in named, f"{file} needs a layer: {rows[0]}"


def run(copy: Path, program: str, *args: str) -> None:
    """In a process that finds the copy: without `site`, which would lead to the installed sources."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    result = subprocess.run(
        [sys.executable, "-S", "-c", program, *args],
        cwd=copy.parent,
        env={"PYTHONPATH": os.pathsep.join([str(copy.parent), *packages])},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


PARAMETER: Edits = {
    "srt/sampling_params.py": before("    n: int = 1", "    heat: float = 1.0\n"),
    "srt/model/sampling/sampler.py": before(
        "        self.top_k = np.array(",
        "        self.temperature *= np.array([p.heat for p in params], np.float32)\n",
    ),
    "srt/server/openai/protocol.py": before("    model: str | None = None\n    n: int", "    heat: float | None = None\n"),
    "lang/sampling.py": before(
        "    n: Annotated[int | None, Wire(",
        '    heat: Annotated[float | None, Wire("heat", default=1.0)]\n',
    ),
}
USE_PARAMETER = """
from sglang.lang.sampling import to_native
from sglang.srt.forward_batch import SampleSpec
from sglang.srt.messages import TokenizedReq, decode_to_scheduler, encode, pack_ids
from sglang.srt.model.sampling.sampler import SamplingBatch
from sglang.srt.sampling_params import parse_sampling_params
from sglang.srt.server.openai.protocol import CommonRequest
from sglang.srt.server.openai.protocol import sampling_params

native, _ = to_native({"heat": 2.0, "temperature": 0.5})
params = parse_sampling_params(native)
assert sampling_params(CommonRequest(heat=2.0), 8, {}).heat == params.heat == 2.0
sent = decode_to_scheduler(encode(TokenizedReq("r", pack_ids([1]), params)))
assert SamplingBatch([SampleSpec(sent.sampling, 0, [1], [])], 9).temperature.tolist() == [1.0]
assert params.adjusts_logits and not params.allows_drafts, "nobody has said yet that drafts may be sampled with it"
assert not parse_sampling_params({"temperature": 0.5}).adjusts_logits
"""


def test_a_sampling_parameter_is_four_files(copy: Path) -> None:
    check_row("a sampling parameter", PARAMETER)
    change(copy, PARAMETER)
    run(copy, USE_PARAMETER)


ROWS: dict[str, Edits] = {
    "a grammar engine": {
        "srt/config.py": after('GrammarEngineName = Literal["', 'made_up", "'),
        "srt/scheduler/grammar/engines/registry.py": (
            "\nENGINES = {",
            """
def _made_up(vocabulary: Vocabulary, options: GrammarOptions, threads: bool) -> GrammarBackend:
    from sglang.srt.scheduler.grammar.engines.made_up import MadeUp

    return MadeUp(vocabulary, options, threads)


ENGINES = {"made_up": (_made_up, "srt"), """,
        ),
    },
    "a proposer of drafts": {
        "srt/scheduler/speculation/planning.py": (
            "            found = [*self._along_tree(req), ",
            "            from sglang.srt.scheduler.speculation.proposers.made_up import MadeUp\n"
            "            found = [*self._along_tree(req), MadeUp(), ",
        )
    },
    "a schedule policy": {
        "srt/config.py": after('SchedulePolicy = Literal["', 'lifo", "'),
        "srt/scheduler/admission/waiting.py": (
            "POLICIES: dict[str, Policy] = {",
            """def lifo(reqs: list[Req], tree: RadixCache, rng: random.Random) -> list[Req]:
    return reqs[::-1]


POLICIES: dict[str, Policy] = {"lifo": lifo, """,
        ),
    },
    "an endpoint": {
        "srt/server/native/routes.py": before(
            '    @documented("Requests and tokens that run and wait", ',
            """    @documented("A greeting", INFORMATION)
    async def greet(self, request: Request) -> Response:
        return JsonResponse("hello")

""",
        ),
        "srt/server/http/app.py": before('        ("/get_load", ', '        ("/greet", get, native.greet),\n'),
    },
    "a flag": {
        "srt/flags/groups.py": before(
            "    schedule_policy: str", '    heat_limit: float = _schedule(0.0, "of the room", least=0.0)\n'
        ),
        "srt/config.py": before("    schedule_policy: SchedulePolicy", "    heat_limit: float = 0.0\n"),
    },
    "a flag of SGLang that does nothing here": {
        "srt/flags/compatible.py": before('    "ep_size": ', '    "heat_pump": OtherFlag("one", "there is none"),\n')
    },
    "a backend of the language": {"__init__.py": after("\n_LAZY = {", '\n    "MadeUp": "sglang.lang.backend.made_up",')},
}
NEW_FILES = {
    "a grammar engine": (
        "srt/scheduler/grammar/engines/made_up.py",
        "from sglang.srt.scheduler.grammar.engines.llguidance_backend import LLGuidanceBackend\n\n\n"
        "class MadeUp(LLGuidanceBackend):\n    pass\n",
    ),
    "a proposer of drafts": (
        "srt/scheduler/speculation/proposers/made_up.py",
        """
from sglang.srt.scheduler.speculation.proposer import Draft


class MadeUp:
    forced_share = 0.0

    def is_confident(self, context, num_running):
        return True

    def propose(self, context, limits):
        return Draft([7], [1], [], "made_up")

    def note_sampled(self, context, token_id):
        pass
""",
    ),
    "a backend of the language": (
        "lang/backend/made_up.py",
        """
from sglang.lang.backend.base import BaseBackend, Generation


class MadeUp(BaseBackend):
    async def generate(self, prompt, options, rid):
        return Generation([prompt.text.upper()], [{}])
""",
    ),
}
USE_ROWS = """
from types import SimpleNamespace
from unittest.mock import Mock

import sglang
from sglang.srt.scheduler.admission.waiting import POLICIES
from sglang.srt.scheduler.grammar.engines.registry import create_backend
from sglang.srt.scheduler.speculation.planning import Proposers
from sglang.srt.scheduler.speculation.proposer import DraftLimits
from sglang.srt.server.http import app
from sglang.srt.server.http.wire import PlainRoute
from sglang.srt.server.native.routes import NativeApi
from sglang.srt.server.openapi.document import make_document
from sglang.srt.server_args import parse_server_args
from sglang.srt.vocabulary import Vocabulary

flags = "--grammar-backend made_up --schedule-policy lifo --heat-limit 3.5 --heat-pump x"
config = parse_server_args(flags.split(), "sglang").resolve()
assert config.schedule.heat_limit == 3.5

vocabulary = Vocabulary(tuple(bytes([i]) for i in range(256)) + (b"",), frozenset({256}), frozenset({256}))
engine = create_backend(vocabulary, config.grammar, threads=False)
assert type(engine).__name__ == "MadeUp" and not engine.compile("regex", "a").is_finished

reqs = [SimpleNamespace(rid=rid) for rid in "abc"]
assert POLICIES[config.schedule.schedule_policy](reqs, None, None) == reqs[::-1]

proposers = Proposers(True, 4, Mock(match_len=lambda *_: (0, None), page_size=1))
req = SimpleNamespace(prompt=[1, 2], salt="", adapter=None, msg=SimpleNamespace(input_ids=[1, 2], resumed=()))
assert proposers.for_free_text(req).propose(req, DraftLimits(8, 8, 1, 1)).ids == [7]

native = NativeApi.__new__(NativeApi)
table = app._routes(native, Mock(), Mock(), Mock(), Mock())
routes = [PlainRoute(path, handler, methods) for path, methods, handler in table if path == "/greet"]
assert make_document(routes, "sglang", "1", "", False)["paths"]["/greet"]["get"]["summary"] == "A greeting"


@sglang.function
def program(s):
    s += "up" + sglang.gen("x")


assert program.run(backend=sglang.MadeUp())["x"] == "UP"
"""


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_its_files(row: str) -> None:
    check_row(row, [*ROWS[row], *NEW_FILES.get(row, ())[:1]])


def test_what_the_rows_say_is_enough(copy: Path) -> None:
    """All made-up things at once, and each is used."""
    for edits in ROWS.values():
        change(copy, edits)
    for file, text in NEW_FILES.values():
        (copy / file).write_text(text)
    run(copy, USE_ROWS)


SAME_LAYERS: Edits = {
    "srt/model/weights/families/rms.py": before(
        '    Family("mllama"',
        '    Family("llama", "MadeUpForCausalLM", "made_up", LLAMA, all_biases),\n',
    ),
}
OWN_LAYERS: Edits = {
    "srt/model/weights/families/rms.py": before(
        '    Family("mllama"',
        '    Family("made_up", "MadeUpForCausalLM", "made_up", LLAMA, all_biases),\n',
    ),
    "srt/model/models/registry.py": before('    "mllama": Mllama', '    "made_up": MadeUp,\n'),
}
MODEL = '''
from __future__ import annotations

from sglang.srt.model.kernels.ops import Array, KVLayer
from sglang.srt.model.layers.buffers import StepBuffers
from sglang.srt.model.models.decoder import Decoder
from sglang.srt.model.models.layer import Layer, Place, SerialLayer


class DeafLayer(SerialLayer):
    """Attention adds nothing."""

    def attend(self, step: StepBuffers, kv: KVLayer, delta: Array | None) -> None:
        super().attend(step, kv, delta)
        step.delta[:] = 0.0


class MadeUp(Decoder):
    def create_layer(self, place: Place) -> Layer:
        return DeafLayer(place, self.create_mixer(place), self.create_channels(place))
'''
USE_MODEL = """
import sys
import sglang

engine = sglang.Engine(model_path=sys.argv[1], load_format="dummy", skip_tokenizer_init=True, kernels="reference",
                       disable_op_tape=True, max_total_tokens=256, max_running_requests=2)
prompts = [[1, 2, 3], [3, 2, 1, 3]]
params = {"temperature": 0, "max_new_tokens": 4}
answers = [engine.generate(input_ids=ids, sampling_params=params, return_logprob=True)["meta_info"] for ids in prompts]
assert all(answer["completion_tokens"] == 4 for answer in answers)
print(engine.get_server_info()["architecture"])
first = [answer["output_token_logprobs"][0][0] for answer in answers]
assert (first[0] == first[1]) == (sys.argv[2] == "deaf"), first  # whether what stands before the last token counts
engine.shutdown()
"""


@pytest.fixture
def folder(tmp_path: Path) -> str:
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {"architectures": ["MadeUpForCausalLM"], "model_type": "made_up", "eos_token_id": 0, **sizes}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    return str(tmp_path / "model")


def test_a_family_with_known_layers_is_one_file(copy: Path, folder: str) -> None:
    change(copy, SAME_LAYERS)
    run(copy, USE_MODEL, folder, "hears")


def test_a_family_with_new_layers_is_three_files(copy: Path, folder: str) -> None:
    check_row("a text model", [*OWN_LAYERS, "model/models/made_up.py"])
    change(copy, OWN_LAYERS)
    registry = copy / "srt/model/models/registry.py"
    registry.write_text(
        registry.read_text().replace("import Mllama\n", "import Mllama\nfrom sglang.srt.model.models.made_up import MadeUp\n")
    )
    (copy / "srt/model/models/made_up.py").write_text(MODEL)
    run(copy, USE_MODEL, folder, "deaf")
