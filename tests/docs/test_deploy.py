"""deploy/ and the Dockerfile: each file is valid for its reader and true of the server. The image's steps run in a root
of Debian packages in the slow test."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from sglang.common.server_process import wait_for_answer
from sglang.srt.checkpoint.resolve import default_cache_dir
from sglang.srt.server_args import ServerArgs, parse_server_args
from tests.conftest import ROOT, free_port

DEPLOY = ROOT / "deploy"
AFTER_DRAINING = 10
"""seconds that the server takes at most, when the time for draining is over"""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SGLANG_")]:
        monkeypatch.delenv(name)


def flags_of(words: list[str], environ: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> ServerArgs:
    """What the server makes of a command line and variables. Every variable is one of its flags."""
    with monkeypatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, str(value))
        return parse_server_args(words, "sglang serve")


def checked(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def instructions() -> list[tuple[str, str]]:
    parser = DockerfileParser(fileobj=(ROOT / "Dockerfile").open("rb+"))
    return [(one["instruction"], one["value"]) for one in parser.structure if one["instruction"] != "COMMENT"]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for instruction, value in instructions():
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            found[name] = [("FROM", base)]
        elif found:
            found[list(found)[-1]].append((instruction, value))
    return found


def chain(name: str) -> list[tuple[str, str]]:
    """All instructions of a stage and of those below it."""
    own = stages()[name]
    base = own[0][1]
    return [*(chain(base) if base in stages() else []), *own[1:]]


def test_stages_of_the_image() -> None:
    found = stages()
    assert list(found)[-1] == "cpu", "what `docker build` makes if nothing is said"
    seen: set[str] = set()
    for name, steps in found.items():
        assert steps[0][1] == "${BASE}" or steps[0][1] in seen
        for _, value in (step for step in steps if step[0] == "COPY" and step[1].startswith("--from=")):
            assert value.removeprefix("--from=").split()[0] in seen
        seen.add(name)
    for image in ("cpu", "cuda"):
        steps = chain(image)
        assert [value for kind, value in steps if kind == "USER"] == ["sglang"]
        assert not [value for kind, value in steps if kind == "RUN" and "g++" in value]
        assert {"HEALTHCHECK", "ENTRYPOINT", "VOLUME", "EXPOSE"} <= {kind for kind, _ in steps}
    for kind, value in instructions():
        assert kind != "RUN" or "apt-get install" not in value or "rm -rf /var/lib/apt/lists" in value


def faults_of(kind: str, value: str) -> list[str]:
    """What hadolint would say of an instruction, of both images."""
    found = []
    if kind == "RUN":
        done = subprocess.run(["/bin/sh", "-n", "-c", value], capture_output=True, text=True)
        found += [f"no shell reads it: {done.stderr}"] if done.returncode else []
        found += [f"{word} in a step" for word in re.findall(r"\b(sudo|cd|curl|wget|apt|latest)\b(?!-)(?!/)", value)]
        for command in value.split("&&"):
            if "apt-get install" in command:
                found += [f"apt-get without {flag}" for flag in ("--yes", "--no-install-recommends") if flag not in command]
                found += ["packages of an old list"] if "apt-get update" not in value else []
            if "pip install" in command:
                found += ["pip keeps a cache in the image"] if "--no-cache-dir" not in command else []
                found += [f"a dependency has no version: {name}" for name in re.findall(r'"([a-z][a-z0-9-]*)"', command)]
    if kind in ("ENTRYPOINT", "CMD") or (kind == "HEALTHCHECK" and "CMD" in value):
        form = json.loads(value[value.index("[") :]) if "[" in value else None
        found += [] if form else ["a shell would take the signals"]
    if kind in ("ADD", "MAINTAINER", "SHELL"):
        found.append(f"{kind} is not needed")
    if kind == "WORKDIR" or (kind == "COPY" and not value.split()[-1].startswith("/")):
        found += [] if value.startswith("/") else ["a path that depends on the step before"]
    if kind == "FROM" and ":" not in value and "$" not in value and value.partition(" ")[0] not in stages():
        found.append("an image without a version")
    return found


def test_every_step_of_the_images_is_sound() -> None:
    assert faults_of("RUN", "cd /x && apt-get install g++ && pip install torch") != []
    assert [(kind, value, found) for kind, value in instructions() if (found := faults_of(kind, value))] == []
    bases = re.findall(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert len(bases) == 1 and ":" in bases[0]
    variables = [name for kind, value in instructions() if kind == "ENV" for name in re.findall(r"(\w+)=", value)]
    assert not [name for name in variables if re.search("KEY|SECRET|TOKEN|PASSWORD", name)]


def test_what_the_build_reads_is_not_ignored() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert all((ROOT / name).exists() for name in kept)
    project = (ROOT / "pyproject.toml").read_text()
    assert set(re.findall(r'^path = "(scripts/.*)"$', project, re.M)) <= set(kept), "what the build runs"
    assert {"pyproject.toml", "src", "csrc", "README.md", "LICENSE"} <= set(kept) and 'readme = "README.md"' in project


def test_variables_of_the_images_are_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for image in ("cpu", "cuda"):
        words = " ".join(value for kind, value in chain(image) if kind == "ENV")
        environ = dict(re.findall(r"(SGLANG_\w+)=(\S+)", words))
        args = flags_of([], environ, monkeypatch)
        assert args.host == "0.0.0.0" and (args.device == "cuda") == (image == "cuda")
    assert capsys.readouterr().err == ""


def test_the_compose_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = DEPLOY / "compose.yaml"
    checked(Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    whole = yaml.safe_load(path.read_text())
    server = whole["services"]["sglang"]
    environ = {name: re.sub(r"\$\{\w+:-(.*)}", r"\1", value) for name, value in server["environment"].items()}
    args = flags_of(server["command"], environ, monkeypatch)
    assert capsys.readouterr().err == "" and args.enable_metrics
    assert args.drain_seconds + AFTER_DRAINING <= int(server["stop_grace_period"].removesuffix("s"))
    assert server["build"]["target"] in stages()
    used = {volume.split(":")[0] for service in whole["services"].values() for volume in service.get("volumes", [])}
    assert {name for name in used if name[0] != "."} == set(whole["volumes"])
    assert all((DEPLOY / name).resolve().is_file() for name in used if name[0] == ".")
    for name, service in whole["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), "a version is named"
    boards = yaml.safe_load((DEPLOY / "grafana/dashboards.yaml").read_text())["providers"][0]["options"]["path"]
    assert any(volume.split(":")[1].startswith(boards) for volume in whole["services"]["grafana"]["volumes"])
    targets = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == [f"sglang:{args.port}"] and args.allowed_hosts == "sglang"
    source = yaml.safe_load((DEPLOY / "grafana/datasources.yaml").read_text())["datasources"][0]
    assert source["type"] == json.loads((ROOT / "docs/grafana/dashboard.json").read_text())["templating"]["list"][0]["query"]


def test_the_configuration_of_prometheus() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool comes with Debian's package prometheus")
    checked("promtool", "check", "config", DEPLOY / "prometheus.yml")
    checked("promtool", "check", "rules", DEPLOY / "alerts.yml")


def test_the_manifest_of_kubernetes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import kubernetes_validate

    objects = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    for one in objects:
        kubernetes_validate.validate(one, "1.30", strict=True)
    by_kind = {one["kind"]: one for one in objects}
    config = tmp_path / "server.yaml"
    config.write_text(by_kind["ConfigMap"]["data"]["server.yaml"])
    args = flags_of(["--config", str(config)], {}, monkeypatch)
    assert capsys.readouterr().err == ""
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pause + args.drain_seconds + AFTER_DRAINING <= pod["terminationGracePeriodSeconds"]
    assert container["ports"][0]["containerPort"] == args.port and pod["enableServiceLinks"] is False
    user = next(value for kind, value in chain("cpu") if kind == "RUN" and "useradd" in value)
    assert f"--uid {pod['securityContext']['runAsUser']} " in user
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert container["args"] == ["--config", "/etc/sglang/config/server.yaml"] and mounted["/etc/sglang/config"] == "config"
    assert args.api_key_file == "/etc/sglang/keys/api_keys" and mounted["/etc/sglang/keys"] == "keys"
    assert set(mounted.values()) == {volume["name"] for volume in pod["volumes"]}
    assert by_kind["Service"]["spec"]["selector"] == by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"]


def test_the_unit_of_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DEPLOY / "sglang.service").read_text()
    words = re.findall(r"^ExecStart=(.*)$", text, re.M)[0].split()
    environ = dict(re.findall(r"(SGLANG_\w+)=(\S+)", text))
    words = [str(DEPLOY / "server.yaml") if word == "/etc/sglang/server.yaml" else word for word in words]
    args = flags_of(words[2:], environ, monkeypatch)
    assert words[1] == "serve" and args.api_key_file == "%d/api_keys" and capsys.readouterr().err == ""
    assert args.drain_seconds + AFTER_DRAINING <= int(re.findall(r"^TimeoutStopSec=(\d+)$", text, re.M)[0])
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze comes with systemd")
    there = tmp_path / "sglang.service"
    there.write_text(text.replace("/opt/sglang/bin/sglang", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", there], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    judged = subprocess.run(["systemd-analyze", "security", "--offline=yes", there], capture_output=True, text=True).stdout
    found = re.search(r"exposure level .*: ([\d.]+)", judged)
    assert found is not None and float(found[1]) < 2, judged


# --- the image --------------------------------------------------------------------------------------------------------------

MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
MAX_BYTES = 350 << 20


class Root:
    """A root of Debian packages in which steps of the Dockerfile run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        self.folder = "/"

    def run(self, *command: str, **more: Any) -> subprocess.CompletedProcess[str]:
        inside = f'cd {self.folder} && exec "$@"'
        words = ["chroot", str(self.path), "/bin/sh", "-c", inside, "sh", *command]
        return subprocess.run(words, env=self.environ, capture_output=True, text=True, **more)

    def step(self, kind: str, value: str, others: dict[str, Root]) -> None:
        """One instruction, as far as it changes files or how programs run."""
        if kind == "RUN":
            done = self.run("/bin/sh", "-c", value)
            assert done.returncode == 0, value + done.stdout[-3000:] + done.stderr[-3000:]
        elif kind == "ENV":
            for name, text in re.findall(r"(\w+)=(\S+)", value):
                self.environ[name] = text.replace("$PATH", self.environ["PATH"])
        elif kind == "WORKDIR":
            self.folder = value
            (self.path / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif kind == "COPY" and value.startswith("--from="):
            stage, source, target = value.removeprefix("--from=").split()
            shutil.copytree(others[stage].path / source.lstrip("/"), self.path / target.lstrip("/"), symlinks=True)
        elif kind == "COPY":
            kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
            target = self.path / value.split()[1].lstrip("/")
            skipped = shutil.ignore_patterns("__pycache__", "*.so", "build", "*.egg-info")
            target.mkdir()
            for name in kept:
                source = ROOT / name
                if source.is_dir():
                    shutil.copytree(source, target / name, ignore=skipped)
                else:
                    (target / name).parent.mkdir(exist_ok=True)
                    shutil.copy(source, target / name)

    def copy(self, path: Path) -> Root:
        subprocess.run(["cp", "-a", self.path, path], check=True)
        other = Root(path)
        other.environ, other.folder = dict(self.environ), self.folder
        return other

    def size(self) -> int:
        done = subprocess.run(["du", "-sxb", "--exclude=proc", self.path], capture_output=True, text=True)
        return int(done.stdout.split()[0])


def bootstrap(path: Path) -> Root:
    """What the base image has: Debian's smallest set of packages, without documentation, and this machine's way to registries."""
    checked("debootstrap", "--variant=minbase", "bookworm", path, MIRROR)
    for name in (
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/info",
        "var/cache/apt/archives",
        "var/lib/apt/lists",
    ):
        shutil.rmtree(path / name, ignore_errors=True)
    for name in (
        "/etc/resolv.conf",
        "/etc/pip.conf",
        "/etc/hosts",
        "/etc/apt/apt.conf.d",
        "/etc/ssl/certs/ca-certificates.crt",
    ):
        if Path(name).is_dir():
            shutil.copytree(name, path / name[1:], dirs_exist_ok=True)
        elif Path(name).exists():
            (path / name[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, path / name[1:])
    (path / "etc/dpkg/dpkg.cfg.d").mkdir(parents=True, exist_ok=True)
    (path / "etc/dpkg/dpkg.cfg.d/slim").write_text("path-exclude /usr/share/doc/*\npath-exclude /usr/share/man/*\n")
    root = Root(path)
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    if bundle.exists():  # a mirror may have its own authority
        shutil.copy(bundle, path / "ca.pem")
        root.environ |= {"PIP_CERT": "/ca.pem", "SSL_CERT_FILE": "/ca.pem"}
    root.environ |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return root


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_image_is_built_and_serves(tmp_path: Path) -> None:
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        pytest.skip("needs debootstrap, and root for chroot")
    roots: dict[str, Root] = {}
    for name in ("base", "build", "build-cpu", "cpu"):
        steps = stages()[name]
        below = steps[0][1]
        roots[name] = roots[below].copy(tmp_path / name) if below in roots else bootstrap(tmp_path / name)
        for kind, value in steps[1:]:
            roots[name].step(kind, value, roots)
    image = roots["cpu"]
    shutil.rmtree(image.path / "etc/apt/apt.conf.d", ignore_errors=True)
    size = image.size()
    assert size < MAX_BYTES, f"{size / 2**20:.0f} MiB"
    checked("mount", "-t", "proc", "proc", image.path / "proc")
    try:
        helped = image.run("sglang", "serve", "--help")
        assert helped.returncode == 0 and "examples:" in helped.stdout, helped.stderr
        shutil.copytree(default_cache_dir(), image.path / "var/lib/sglang/cache/sglang-anywhere", dirs_exist_ok=True)
        checked("chown", "-R", "10001", image.path / "var/lib/sglang")
        port = free_port()
        words = [
            "chroot",
            "--userspec=10001",
            str(image.path),
            "/opt/sglang/bin/sglang",
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        with (tmp_path / "log").open("wb") as log:
            server = subprocess.Popen(words, env=image.environ, stdout=log, stderr=log)
        try:
            wait_for_answer(f"http://127.0.0.1:{port}/health", server, 300)
        finally:
            server.terminate()
            assert server.wait(60) == 0, (tmp_path / "log").read_text()[-3000:]
        assert "NumPy reference" not in (tmp_path / "log").read_text()
    finally:
        checked("umount", image.path / "proc")
    print(f"the image has {size / 2**20:.0f} MiB")
