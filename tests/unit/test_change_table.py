"""The table of changes in docs/architecture.md is true: made-up parameters and families are put into a copy of the sources, in the
files that the table names and no others, and work."""

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

import sglang

SOURCES = Path(sglang.__file__).parent
TABLE = SOURCES.parents[1] / "docs" / "architecture.md"
Edits = dict[str, tuple[str, str]]
"""file -> (a line's beginning, what is put before it)"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's sources, to be changed."""
    return Path(shutil.copytree(SOURCES, tmp_path / "sglang", ignore=shutil.ignore_patterns("__pycache__", "*.so")))


def change(copy: Path, edits: Edits) -> None:
    for file, (line, new) in edits.items():
        before = (copy / file).read_text()
        assert before.count(f"\n{line}") == 1, f"{file} does not have one line that begins with {line!r}"
        (copy / file).write_text(before.replace(f"\n{line}", f"\n{new}{line}"))


def check_row(change: str, files: Iterable[str]) -> None:
    """The row of the table names every one of the files, or its folder."""
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith(f"| {change} |")]
    named = re.findall(r"`([^`]*)`", rows[0])
    for file in files:
        assert any(name.removesuffix("x.py") in file for name in named), f"{file} is not in {rows[0]}"


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
    "srt/sampling_params.py": ("    n: int = 1", "    heat: float = 1.0\n"),
    "srt/model/sampling/sampler.py": (
        "        self.top_k = np.array(",
        "        self.temperature *= np.array([p.heat for p in params], np.float32)\n",
    ),
    "srt/server/openai/protocol.py": ("    model: str | None = None\n    n: int", "    heat: float | None = None\n"),
    "lang/sampling.py": (
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


SAME_LAYERS: Edits = {
    "srt/model/weights/families/rms.py": (
        '    Family("mllama"',
        '    Family("llama", "MadeUpForCausalLM", "made_up", LLAMA, all_biases),\n',
    ),
}
OWN_LAYERS: Edits = {
    "srt/model/weights/families/rms.py": (
        '    Family("mllama"',
        '    Family("made_up", "MadeUpForCausalLM", "made_up", LLAMA, all_biases),\n',
    ),
    "srt/model/models/registry.py": ('    "mllama": Mllama', '    "made_up": MadeUp,\n'),
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
