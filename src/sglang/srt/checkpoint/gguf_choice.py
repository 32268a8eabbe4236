"""Which file of a repository of .gguf files is meant: by its quantization, as `OWNER/NAME:Q4_K_M` says it, or the usual one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sglang.srt.checkpoint.gguf_parts import part_names
from sglang.srt.errors import ModelError

USUAL = "Q4_K_M"
"""what is taken where nothing is said, as other programs do"""
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_QUANTIZATION = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d\w*|TQ\d_\d|MXFP4\w*|NVFP4\w*|BF16|FP?16|FP?32))$", re.IGNORECASE | re.ASCII
)
_NO_MODELS = ("mmproj", "imatrix")


def choose_gguf(repo: str, files: Sequence[str], tag: str | None) -> list[str]:
    """The file of a quantization, or all its parts if it is split. Raises ModelError naming what there is."""
    models = [name for name in files if name.endswith(".gguf") and not _base(name).startswith(_NO_MODELS)]
    firsts = [name for name in models if part_names(_base(name))[0] == _base(name)]
    if not firsts:
        raise ModelError(f"{repo} holds no .gguf file of a model: check the name, or leave the tag out")
    if tag is None:
        chosen = firsts if len(firsts) == 1 else _of_tag(firsts, USUAL)
    else:
        chosen = _of_tag(firsts, tag)
    if not chosen:
        known = sorted({found for name in firsts if (found := quantization(name))}) or sorted(firsts)
        asked = f"none of {tag[:80]!r}" if tag is not None else f"several .gguf files, none of them {USUAL}"
        raise ModelError(f"{repo} holds {asked}: add one of {', '.join(':' + name for name in known)}")
    if len(chosen) > 1:
        raise ModelError(f"{repo} holds several files of that kind: pass one of {', '.join(f'{repo}/{n}' for n in chosen)}")
    folder = chosen[0][: -len(_base(chosen[0]))]
    parts = [folder + part for part in part_names(_base(chosen[0]))]
    if missing := [part for part in parts if part not in models]:
        raise ModelError(f"{repo} lacks the part {missing[0]} of its split model")
    return parts


def quantization(name: str) -> str | None:
    """Q4_K_M of ...-Q4_K_M.gguf."""
    found = _QUANTIZATION.search(_stem(name))
    return found[1] if found else None


def _of_tag(names: Sequence[str], tag: str) -> list[str]:
    """Files whose name ends in the tag. A file that says it alone is meant before one that says more (UD-Q4_K_M)."""
    wanted = tag.lower()
    exact = [name for name in names if (quantization(name) or "").lower() == wanted]
    return exact or [name for name in names if re.search(rf"(?:^|[-._]){re.escape(wanted)}$", _stem(name).lower())]


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _stem(name: str) -> str:
    return _PART.sub("", _base(name).removesuffix(".gguf"))
