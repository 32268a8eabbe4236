"""`sglang models`: those with a short name. `sglang pull`, `sglang list`, `sglang rm`: models on this machine. `sglang cache`: what is kept for them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from sglang.commands.arguments import CommandError, Parser
from sglang.common.install import needs_extra
from sglang.srt.flags.values import parse_size

DAY = 86400.0
MODEL = "a short name (sglang models), OWNER/NAME of the hub, OWNER/NAME:Q4_K_M or OWNER/NAME/FILE.gguf"


def _parser(name: str, description: str, *examples: str) -> Parser:
    parser = Parser(f"sglang {name}", description)
    parser.add_argument("--download-dir", metavar="DIR", help="where models are kept, if not in the user's cache")
    parser.end_with(*examples or ("",), starts_server=False)
    return parser


def models(argv: list[str]) -> int:
    """Those with a short name, and which of them are downloaded."""
    parser = Parser("sglang models", "Models with a short name: size, license, and whether they are downloaded.")
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
        print(f"{star} {name:24} {alias.file.num_bytes / 1e6:5.0f} MB  {alias.license:20} {place}\n    {alias.description}")
    print("\n* is served when no model is named. A local folder, a .gguf file or a hub id (org/name) is a model, too.")
    return 0


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
        "sglang cache",
        "What is kept on disk: downloaded models, weights as the kernels need them (--weights-cache), prefixes (--cache-dir). Shows it, "
        "and deletes what can be made again.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    about = {
        "show": "all that DIR holds, with sizes",
        "prune": "delete prefixes and weights; those that a running server uses stay, and downloads do (sglang rm)",
        "export": "write the prefixes of one model in DIR to FILE, which holds the prompts themselves",
        "import": "add the prefixes in FILE to DIR; from people you trust, since they become the model's memory of these prompts",
    }
    show, prune, out, back = (actions.add_parser(name, help=text, description=text) for name, text in about.items())
    for action in (show, prune):
        action.add_argument(
            "folder",
            metavar="DIR",
            type=Path,
            nargs=argparse.OPTIONAL,
            help="what --cache-dir or --weights-cache names; default: the user's cache",
        )
    for action in (out, back):
        action.add_argument("folder", metavar="DIR", type=Path, help="the folder that --cache-dir names")
        action.add_argument("file", metavar="FILE", type=Path, help="the archive")
    out.add_argument("--model", metavar="NAME", help="as `sglang cache show` calls it, or the beginning of its folder's name")
    back.add_argument("--cache-disk", metavar="SIZE", type=parse_size, help="the maximum size of DIR, as the server has it")
    choice = prune.add_mutually_exclusive_group(required=True)
    choice.add_argument("--all", action="store_true", help="everything")
    choice.add_argument("--unused-for", metavar="DAYS", type=_days, help="what was not used for so many days")
    parser.end_with("show", "prune DIR --unused-for 30", "export DIR warm.prefixes", starts_server=False)
    args = parser.parse_args(argv)
    if args.action == "import":
        return _import(args.file.expanduser(), args.folder.expanduser(), args.cache_disk)
    if args.folder is not None and not args.folder.expanduser().is_dir():
        raise CommandError(f"{args.folder} is not a folder")
    with needs_extra("srt"):
        from sglang.srt.checkpoint import cache_folder
        from sglang.srt.checkpoint.resolve import default_cache_dir
    folder = args.folder.expanduser() if args.folder is not None else default_cache_dir()
    if args.action == "show":
        num_shown = _show_downloads() if args.folder is None else 0
        if not num_shown + _show_weights(folder) + _show_prefixes(folder):
            print("nothing is kept here")
        return 0
    if args.action == "export":
        return _export(folder, args.file.expanduser(), args.model)
    before = time.time() - (0 if args.all else args.unused_for * DAY)
    freed = cache_folder.remove_unused([kept for kept in cache_folder.kept_files(folder) if args.all or kept.used_at < before])
    left = cache_folder.folder_bytes(folder)
    print(f"{freed / 1e6:.1f} MB deleted, {left / 1e6:.1f} MB are left")
    return 0


def _export(folder: Path, file: Path, model: str | None) -> int:
    from sglang.srt.errors import ConfigError
    from sglang.srt.scheduler.cache.disk.archive import export_records, fingerprint_folders

    found = fingerprint_folders(folder, model)
    if len(found) != 1:
        what = (
            "no prefixes" if not found else f"those of {len(found)} models: choose one by --model (sglang cache show {folder})"
        )
        raise CommandError(f"{folder} holds {what}{f' of {model}' if model and not found else ''}")
    if file.exists():
        raise CommandError(f"{file} exists already")
    try:
        head = export_records(found[0], file)
    except ConfigError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {error.strerror or error}") from error
    print(f"{head.num_records} records ({_size(head.num_bytes)}) of {head.about.get('model', 'unknown model')} in {file}")
    return 0


def _import(file: Path, folder: Path, limit: int | None) -> int:
    with needs_extra("srt"):
        from sglang.srt.errors import ConfigError
        from sglang.srt.scheduler.cache.disk.archive import import_records
        from sglang.srt.scheduler.cache.disk.store import DiskRoom
    try:
        found = import_records(file, folder, DiskRoom(limit))
    except ConfigError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{error.filename or file}: {error.strerror or error}") from error
    about = found.head.about
    print(f"{found.num_new} records added, {found.num_known} were there, of {about.get('model', 'unknown model')}.")
    print(
        f"A server finds them if its checkpoint, kernels ({about.get('kernels', 'unknown')}) and flags are those they came from."
    )
    return 0


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days <= 1e6:
        raise argparse.ArgumentTypeError(f"a number of days, from 0 on, got {text!r}")
    return days


def _show_downloads() -> int:
    from sglang.srt.checkpoint.downloads import list_downloads

    found = list_downloads()
    for download in found:
        print(f"{download.num_bytes / 1e6:10.1f} MB  download  {download.name}")
    return len(found)


def _show_weights(folder: Path) -> int:
    from sglang.srt.checkpoint.cache_folder import packed_files, read_packed_about

    found = packed_files(folder)
    for packed in found:
        about = read_packed_about(packed)
        name = f"{about.get('model', 'not finished')}  ({about.get('kernels', 'unknown kernels')})"
        print(f"{packed.num_bytes / 1e6:10.1f} MB  weights   used {_when(packed.used_at)}  {packed.path.stem[:8]}  {name}")
    return len(found)


def _show_prefixes(folder: Path) -> int:
    from sglang.srt.checkpoint import cache_folder

    models: dict[Path, list[cache_folder.SegmentFiles]] = {}
    for segment in cache_folder.segment_files(folder):
        models.setdefault(segment.index.parent, []).append(segment)
    for path, segments in models.items():
        about, num_bytes = cache_folder.read_about(path), sum(segment.num_bytes for segment in segments)
        name = f"{about.get('model', 'unknown model')}  ({about.get('kernels', 'unknown kernels')})"
        used = _when(max(segment.used_at for segment in segments))
        print(f"{num_bytes / 1e6:10.1f} MB  prefixes  used {used}  {path.name}  {name}")
    return len(models)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
