"""`sglang models`: the models with a short name, and which of them are downloaded."""

from __future__ import annotations

from pathlib import Path

from sglang.commands.arguments import Parser
from sglang.common.install import needs_extra


def models(argv: list[str]) -> int:
    """The command."""
    parser = Parser("sglang models", "Models with a short name: size, licence, and whether they are downloaded.")
    parser.add_argument("--download-dir", metavar="DIR", help="where to look, if not in the user's cache")
    parser.end_with("", starts_server=False)
    args = parser.parse_args(argv)
    with needs_extra("srt"):
        from sglang.srt.checkpoint.resolve import ALIASES, default_cache_dir
        from sglang.srt.config import DEFAULT_MODEL
    folder = Path(args.download_dir).expanduser() if args.download_dir else default_cache_dir() / "models"
    for name, alias in ALIASES.items():
        path = folder / name / alias.file.file_name
        here = path.is_file() and path.stat().st_size == alias.file.num_bytes
        place = f"cached   {path}" if here else "not here (downloaded at first use)"
        star = "*" if name == DEFAULT_MODEL else " "
        print(f"{star} {name:24} {alias.file.num_bytes / 1e6:5.0f} MB  {alias.licence:20} {place}\n    {alias.description}")
    print("\n* is served when no model is named. A local folder, a .gguf file or a hub id (org/name) is a model, too.")
    return 0
