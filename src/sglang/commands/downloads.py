"""`sglang pull`, `sglang list`, `sglang rm`: models on this machine. `sglang cache`: prefixes that are kept for them (--cache-dir)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from sglang.commands.arguments import CommandError, Parser
from sglang.common.install import needs_extra

DAY = 86400.0
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


def cache(argv: list[str]) -> int:
    """The command."""
    parser = Parser(
        "sglang cache", "Prefix caches on disk (sglang serve --cache-dir DIR): shows what a folder holds, and deletes."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    about = {
        "show": "the models whose prefixes DIR holds, with sizes",
        "prune": "delete prefixes; those of a model that a running server serves from DIR stay",
    }
    show, prune = (actions.add_parser(name, help=text, description=text) for name, text in about.items())
    for action in (show, prune):
        action.add_argument("folder", metavar="DIR", type=Path, help="the folder that --cache-dir names")
    choice = prune.add_mutually_exclusive_group(required=True)
    choice.add_argument("--all", action="store_true", help="everything")
    choice.add_argument("--unused-for", metavar="DAYS", type=_days, help="what was not used for so many days")
    parser.end_with("show DIR", "prune DIR --unused-for 30", starts_server=False)
    args = parser.parse_args(argv)
    if not args.folder.expanduser().is_dir():
        raise CommandError(f"{args.folder} is not a folder")
    with needs_extra("srt"):
        from sglang.srt.scheduler.cache.disk import folder as disk
    folder = args.folder.expanduser()
    if args.action == "show":
        _show(folder)
        return 0
    segments = [s for s in disk.segment_files(folder) if args.all or s.used_at < time.time() - args.unused_for * DAY]
    freed = disk.remove_unlocked(segments)
    left = disk.folder_bytes(folder)
    print(f"{freed / 1e6:.1f} MB deleted, {left / 1e6:.1f} MB are left")
    return 0


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days <= 1e6:
        raise argparse.ArgumentTypeError(f"a number of days, from 0 on, got {text!r}")
    return days


def _show(folder: Path) -> None:
    from sglang.srt.scheduler.cache.disk import folder as disk

    models: dict[Path, list[disk.SegmentFiles]] = {}
    for segment in disk.segment_files(folder):
        models.setdefault(segment.index.parent, []).append(segment)
    for path, segments in models.items():
        about, num_bytes = disk.read_about(path), sum(segment.num_bytes for segment in segments)
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(max(segment.used_at for segment in segments)))
        name = f"{about.get('model', 'unknown model')}  ({about.get('kernels', 'unknown kernels')})"
        print(f"{num_bytes / 1e6:10.1f} MB  used {used}  {path.name}  {name}")
    if not models:
        print("no prefixes are kept here")
