"""`sglang pull`, `sglang list`, `sglang rm`: models on this machine."""

from __future__ import annotations

import argparse

from sglang.commands.arguments import CommandError, Parser
from sglang.common.install import needs_extra

MODEL = "a short name (sglang models), OWNER/NAME of the hub, OWNER/NAME:Q4_K_M or OWNER/NAME/FILE.gguf"


def _parser(name: str, description: str, *examples: str) -> Parser:
    parser = Parser(f"sglang {name}", description)
    parser.add_argument("--download-dir", metavar="DIR", help="where models are kept, if not in the user's cache")
    parser.end_with(*examples or ("",), starts_server=False)
    return parser


def pull(argv: list[str]) -> int:
    """Downloads a model, or what is missing of it."""
    about = (
        "Downloads a model; what was begun is continued. HF_TOKEN gives access to private and gated models, HF_ENDPOINT names another "
        "hub, HF_HUB_OFFLINE=1 forbids to ask one."
    )
    parser = _parser("pull", about, "Qwen/Qwen3-0.6B", "hf.co/unsloth/Qwen3-0.6B-GGUF:Q4_K_M")
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub model")
    parser.add_argument("--gguf-file", metavar="FILE", help="this file of a repository")
    args = parser.parse_args(argv)
    with needs_extra("srt"):
        from sglang.srt.checkpoint.gguf_parts import with_gguf_file
        from sglang.srt.checkpoint.resolve import resolve_model
        from sglang.srt.errors import ModelError
    try:
        name = with_gguf_file(args.model, args.gguf_file)
        files = resolve_model(name, revision=args.revision, download_dir=args.download_dir)
    except ModelError as error:
        raise CommandError(str(error)) from error
    print(files.path)
    return 0


def list_models(argv: list[str]) -> int:
    """Prints the downloaded models by the names that --model-path takes."""
    args = _parser("list", "Models that are downloaded: size, and the name that --model-path takes.").parse_args(argv)
    with needs_extra("srt"):
        from sglang.srt.checkpoint.downloads import list_downloads
    found = list_downloads(args.download_dir)
    for download in found:
        print(f"{_size(download.num_bytes):>9}  {download.name}")
    if not found:
        print("nothing is downloaded; sglang models lists models with a short name, sglang pull MODEL downloads one")
    return 0


def remove(argv: list[str]) -> int:
    """Deletes models."""
    parser = _parser("rm", "Deletes downloaded models.", "unsloth/Qwen3-0.6B-GGUF:Q4_K_M")
    parser.add_argument(
        "models", metavar="MODEL", nargs=argparse.ONE_OR_MORE, help="as sglang list names it, or a whole OWNER/NAME"
    )
    args = parser.parse_args(argv)
    with needs_extra("srt"):
        from sglang.srt.checkpoint.downloads import remove_download
        from sglang.srt.errors import ModelError
    for name in args.models:
        try:
            freed = remove_download(name, args.download_dir)
        except ModelError as error:
            raise CommandError(str(error)) from error
        print(f"{name}: {_size(freed)} deleted")
    return 0


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
