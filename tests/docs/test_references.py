"""Names in the documents exist: files, links, modules, flags, classes and functions."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from io import StringIO
from pathlib import Path
from tokenize import COMMENT as COMMENT_TOKEN
from tokenize import generate_tokens

from sglang.srt.flags.compatible import ALIASES, FLAGS
from sglang.srt.model.weights.families.encoders import ENCODER_FAMILIES
from sglang.srt.server_args import ServerArgs
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FOLDERS = ("src", "csrc", "tests", "benchmarks", "scripts", "examples", "docs", "models", ".ci")
SOURCES = (".py", ".cpp", ".h", ".sh", ".html", ".js", "")

WORD = re.compile(r"[A-Za-z_]\w*")
SPAN = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w.<{*/-])((?:\.?[\w{},.-]+/)*[\w{},-]+\.(?:py|h|cpp|md|toml))\b(?!\()")
FOLDER = re.compile(r"^(?:\w[\w-]*/)+$")
MEMBER = re.compile(r"\b([A-Z][A-Za-z]+)\.([a-z_]\w+)\b")
MODULE = re.compile(r"python -m ([\w.]+)")
FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z0-9_-]*[a-z0-9])")
NAME = re.compile(r"^(?:[A-Za-z_]\w*\.)*_?[A-Za-z]\w*(?:\(\))?$")

OTHERS_FILES = {"config.toml", "llama.cpp", "DIR/results.md", "OUT/results.md", "tutorial_cells.py", "transformer.h"}
"""files of other programs, those that a command writes or takes, and a name of tensors"""

OTHERS_MODULES = {"pip", "pytest", "pstats"}

NEW_FILE = re.compile(r"(?:^|[/_])x\.\w+$")
"""`models/x.py`: a file that a reader is to add"""

OTHERS_NAMES = {
    "sglang.srt.managers",
    "sglang.srt.layers",
    "terminationGracePeriodSeconds",
    "nce",
    "CLAUDE_CODE_MAX_OUTPUT_TOKENS",
}
"""names of other programs (SGLang's internals, Kubernetes, Claude Code), and text of examples"""

OTHERS_FLAGS = {
    **dict.fromkeys(("--no-deps", "--editable"), "pip"),
    **dict.fromkeys(("--ignore",), "pytest"),
    **dict.fromkeys(("--node-manager-port", "--object-manager-port", "--min-worker-port", "--max-worker-port"), "ray start"),
    "--tokenizer": "sglang.bench_serving makes its flags from names",
}


@cache
def files() -> frozenset[str]:
    """The paths of all files, below the root, but for those that a build makes."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    paths = [path.relative_to(ROOT) for path in found]
    return frozenset(path.as_posix() for path in paths if not {"__pycache__", "build", "dist"} & {*path.parts})


@cache
def source() -> str:
    """All source text there is, without this file."""
    paths = [
        ROOT / name
        for name in sorted(files())
        if not name.startswith(("docs/", "models/")) and name != "tests/docs/test_references.py"
    ]
    return "\n".join(path.read_text("utf-8", errors="replace") for path in paths if path.suffix in SOURCES)


@cache
def words() -> frozenset[str]:
    """Those of the sources, and names of encoders' classes, which are composed there."""
    return frozenset(WORD.findall(source())) | {name for family in ENCODER_FAMILIES for name in family.class_names}


@cache
def modules() -> dict[str, set[str]]:
    """name of a file or folder -> the words in all files of this name, or below it"""
    found: dict[str, set[str]] = {}
    for name in files():
        if name.startswith("src/") and name.endswith(".py"):
            path = Path(name)
            inside = {path.stem, *WORD.findall((ROOT / path).read_text("utf-8"))}
            for owner in (path.stem, *path.parts[:-1]):
                found.setdefault(owner, set()).update(inside)
    return found


@cache
def definitions() -> frozenset[str]:
    """Functions and classes whose names cannot be those of fields, such as `reasoning.summary`."""
    names = re.findall(r"^(?:async )?(?:def|class) (\w+)", source(), re.MULTILINE)
    return frozenset(name for name in names if "_" in name or name != name.lower())


@cache
def classes() -> dict[str, set[str]]:
    """class -> the names of its methods and fields, with those of its bases"""
    members: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    for name in files():
        if name.startswith("src/") and name.endswith(".py"):
            for node in ast.walk(ast.parse((ROOT / name).read_text("utf-8"))):
                if isinstance(node, ast.ClassDef):
                    members.setdefault(node.name, set()).update(members_of(node))
                    bases.setdefault(node.name, set()).update(
                        ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases
                    )
    for name in members:
        todo = set(bases[name])
        while todo:
            base = todo.pop()
            members[name] |= members.get(base, set())
            todo |= bases.get(base, set())
    return members


def members_of(node: ast.ClassDef) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child.name
        elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            yield child.target.id
        elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
            yield child.attr


def ours(page: Path) -> str:
    """The text; of pages about other programs without the cells that say what it is called there."""
    text = page.read_text("utf-8")
    if page.name.startswith("migrating-from-") and page.name != "migrating-from-sglang.md":
        return re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE)
    return text


def spans(text: str) -> list[str]:
    return SPAN.findall(FENCE.sub("", text))


def expand(path: str) -> Iterator[str]:
    """`pool.{h,cpp}` -> pool.h, pool.cpp"""
    braces = re.search(r"\{([^}]*)\}", path)
    if braces is None:
        yield path
        return
    for part in braces[1].split(","):
        yield from expand(path[: braces.start()] + part + path[braces.end() :])


@cache
def is_file(path: str) -> bool:
    """Documents write a path from the root, from src/, from the runtime, or from a folder that they speak of."""
    return any(name == path or name.endswith("/" + path) for name in files())


def check(missing: Callable[[Path], Iterable[str]]) -> None:
    found = {page.relative_to(ROOT).as_posix(): sorted(set(missing(page))) for page in PAGES}
    assert {page: names for page, names in found.items() if names} == {}


def test_files_and_folders_exist() -> None:
    folders = {f"/{name.rpartition('/')[0]}/" for name in files()}

    def missing(page: Path) -> Iterator[str]:
        text = ours(page)
        for path in (path.removeprefix("../") for found in FILE.findall(text) for path in expand(found)):
            if path not in OTHERS_FILES and not NEW_FILE.search(path) and not is_file(path):
                yield path
        for span in spans(text):
            if FOLDER.match(span) and not any(f"/{span}" in folder for folder in folders):
                yield span

    check(missing)


COMMENT = {
    ".cpp": r"//.*",
    ".h": r"//.*",
    ".js": r"//.*",
    ".yml": "#.*",
    ".yaml": "#.*",
    ".toml": "#.*",
    ".service": "#.*",
    "": "#.*",
}


def comments(name: str) -> str:
    """Comments and docstrings of a source file."""
    path, text = Path(name), (ROOT / name).read_text("utf-8", errors="replace")
    if path.suffix != ".py":
        return "\n".join(re.findall(COMMENT[path.suffix], text))
    found = [token.string for token in generate_tokens(StringIO(text).readline) if token.type == COMMENT_TOKEN]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.append(node.value.value)
    return "\n".join(found)


def test_files_and_modules_that_comments_name_exist() -> None:
    sources = [
        name
        for name in sorted(files())
        if Path(name).suffix in (".py", *COMMENT) and not name.startswith(("docs/", "models/")) and "/vendor/" not in name
    ]
    assert len(sources) > 1000
    missing = {}
    for name in sources:
        text = comments(name)
        paths = {path for found in FILE.findall(text) for path in expand(found)} - OTHERS_FILES
        gone = {path for path in paths if not NEW_FILE.search(path) and not path.startswith("peft/") and not is_file(path)}
        for module in set(MODULE.findall(text)) - OTHERS_MODULES:
            path = module.replace(".", "/")
            if not (is_file(f"{path}.py") or is_file(f"{path}/__main__.py")):
                gone.add(module)
        if gone:
            missing[name] = gone
    assert missing == {}


def test_members_that_comments_name_exist() -> None:
    """`Inlet.check_room`, of our own classes."""
    missing = set()
    for name in files():
        if name.startswith("src/") and name.endswith(".py"):
            for owner, member in MEMBER.findall(comments(name)):
                if owner in classes() and member not in classes()[owner]:
                    missing.add((name, f"{owner}.{member}"))
    assert missing == set()


def test_imports_of_programs_beside_the_package_exist() -> None:
    """Benchmarks, examples and scripts import inside functions, too, and most of them no test runs."""
    missing = set()
    for name in files():
        if name.startswith(("benchmarks/", "examples/", "scripts/")) and name.endswith(".py"):
            for node in ast.walk(ast.parse((ROOT / name).read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("sglang", "benchmarks", "tests"):
                    missing |= {(name, node.module, alias.name) for alias in node.names if not has(node.module, alias.name)}
    assert missing == set()


def has(module: str | None, name: str) -> bool:
    path = (module or "").replace(".", "/")
    path = f"src/{path}" if path.startswith("sglang") else path
    own = next((ROOT / file for file in (f"{path}.py", f"{path}/__init__.py") if file in files()), None)
    is_module = bool({f"{path}/{name}.py", f"{path}/{name}/__init__.py"} & files())
    return is_module or (own is not None and name in WORD.findall(own.read_text("utf-8")))


def test_links_lead_somewhere() -> None:
    def missing(page: Path) -> Iterator[str]:
        for link in LINK.findall(ours(page)):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            if not path.startswith(("http:", "https:")) and (not target.exists() or (anchor and anchor not in anchors(target))):
                yield link

    check(missing)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_modules_and_scripts_exist() -> None:
    def missing(page: Path) -> Iterator[str]:
        for module in MODULE.findall(ours(page)):
            path = module.replace(".", "/")
            if module not in OTHERS_MODULES and not (is_file(f"{path}.py") or is_file(f"{path}/__main__.py")):
                yield module

    check(missing)


def test_flags_exist() -> None:
    """A flag is one of the server, one of SGLang that the table knows, or is spelt out where a program reads it."""
    known = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(ServerArgs)}
    known |= {f"--{name.replace('_', '-')}" for name in (*ALIASES, *FLAGS)}
    known |= set(re.findall(r"[\"' (\[](--[a-z][a-z0-9_-]*)", source()))
    check(lambda page: set(FLAG.findall(ours(page))) - known - set(OTHERS_FLAGS))


def test_names_exist() -> None:
    def missing(page: Path) -> Iterator[str]:
        for span in spans(ours(page)):
            if NAME.match(span) and span not in OTHERS_NAMES and not is_file(span) and not is_known(span.removesuffix("()")):
                yield span

    check(missing)


def is_known(name: str) -> bool:
    """A member is one of its class, `file.name` one of its file; any other name stands somewhere in the source."""
    *owners, last = name.split(".")
    if owners and owners[-1] in classes():
        return last in classes()[owners[-1]]
    if owners and owners[-1] in modules() and last in definitions():
        return last in modules()[owners[-1]]
    return is_file(f"{name.replace('.', '/')}.py") or all(part in words() for part in [*owners, last])


def test_pages_of_ideas_are_short() -> None:
    lengths = {page.name: len(ours(page).splitlines()) for page in (ROOT / "docs" / "ideas").glob("*.md")}
    assert len(lengths) >= 5
    assert [name for name, length in lengths.items() if length > 100] == []


def test_what_is_not_there_is_found() -> None:
    assert not is_file("server/no_such_file.py")
    assert not is_known("Scheduler.no_such_method")
    assert not is_known("process.launch.no_such_function")
    assert not is_known("no_such_name_anywhere")
    assert is_known("process.ending.LastResort")
    assert not is_known("server.engine.LastResort")
