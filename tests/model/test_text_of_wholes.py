"""Models that see or hear as well as read, served as their text decoders: tensors under the decoder's names in the whole class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels.reference import ReferenceOps
from tests.model.dense_families import LAYERED
from tests.model.test_dense_families import PROMPT, logits_of
from tests.model.tiny import SIZES, Driver, open_worker, randomize

torch = pytest.importorskip("torch")
KINDS = ["sliding_attention", "full_attention"] * 2
TEXT: dict[str, dict[str, Any]] = {
    "Gemma4": {"global_head_dim": 40},
    "Gemma3n": {"laurel_rank": 8, "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.95]},
}


@pytest.mark.parametrize("family", TEXT)
def test_the_text_decoder_of_a_whole_model(family: str, tmp_path: Path) -> None:
    import transformers

    text = {**SIZES, **LAYERED, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": KINDS, **TEXT[family]}
    more: dict[str, Any] = {"vision_config": None, "audio_config": None}
    config = getattr(transformers, f"{family}Config")(text_config={**text, "pad_token_id": 0}, **more)
    if family == "Gemma3n":  # its towers are timm's: the decoder alone is saved under the whole one's names
        model = transformers.Gemma3nForCausalLM(config.text_config).float().eval()
    else:
        model = transformers.Gemma4ForConditionalGeneration(config).float().eval()
    model.set_attn_implementation("eager")
    randomize(model)
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([PROMPT])).logits[0].numpy()
    if family == "Gemma3n":
        names = {k.replace("model.", "model.language_model.", 1): v.contiguous() for k, v in model.state_dict().items()}
        names.pop("lm_head.weight")
        config.architectures = ["Gemma3nForConditionalGeneration"]
        config.save_pretrained(tmp_path)
        from safetensors.torch import save_file

        save_file(names, tmp_path / "model.safetensors")
    else:
        model.save_pretrained(tmp_path)
    ours = logits_of(Driver(open_worker(tmp_path, ReferenceOps())), PROMPT)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=1e-4)
