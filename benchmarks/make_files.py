"""Makes files of other block types from a GGUF file, for comparing engines on the same weights. Speed only: values that were
rounded once are rounded again.

    .venv-test/bin/python -m benchmarks.make_files FOLDER [--types F16,Q8_0,Q4_0,F32] [--model FILE or alias]

Matrices get the new type, vectors stay float32, metadata (tokenizer included) is copied. Needs the package `gguf`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import gguf

from benchmarks.peers import ROOT, local_file

OWN_KEYS = ("GGUF.", "general.architecture", "general.file_type")
"""what the writer sets itself"""


def copy_metadata(reader: Any, writer: Any) -> None:
    for key, field in reader.fields.items():
        if not key.startswith(OWN_KEYS):
            kind = field.types[0]
            element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, element)


def convert(source: Path, target: Path, kind: Any) -> None:
    """Writes `source` with its matrices as blocks of `kind`."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    copy_metadata(reader, writer)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind.name == "F32" else f"MOSTLY_{kind.name}"])
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) == 2:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--types", default="F16,Q8_0,Q4_0")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))
    source = Path(local_file(args.model))
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.types.split(","):
        target = args.folder / f"{source.stem.rsplit('.', 1)[0]}.{name}.gguf"
        convert(source, target, gguf.GGMLQuantizationType[name])
        print(f"{target}  {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
