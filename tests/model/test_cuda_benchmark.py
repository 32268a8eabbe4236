"""benchmarks/cuda.py, as far as a machine without a GPU can try it: sections in small shapes on Triton's interpreter, and what is
made of their findings, of those that were cut off and of those that failed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cuda
from benchmarks.gpu import checks
from benchmarks.gpu import ops as op_checks
from benchmarks.gpu.ops import Side, cases, error_of
from sglang.srt.model.kernels.kv_runs import ReferenceRuns
from sglang.srt.model.kernels.reference import ReferenceOps

ROOT = Path(__file__).parents[2]
pytest.importorskip("torch", reason="torch is not installed")
from tests.model import quantized  # noqa: E402
from tests.server.test_processes import wait_dead  # noqa: E402


def need_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from sglang.srt.model.kernels.cuda.ops import INTERPRETED

    if not INTERPRETED:
        pytest.skip("Triton compiles here: run benchmarks/cuda.py itself")


def run_of(out: Path) -> cuda.Run:
    return cuda.Run(tiny=True, device="cpu", kernels="cuda", out=out, limit_s=60.0)


def test_the_machine_is_measured(tmp_path: Path) -> None:
    need_interpreter()
    cuda.run_section("machine", run_of(tmp_path))
    findings = cuda.read_findings(tmp_path / "machine.jsonl")
    assert cuda.is_complete(findings)
    limits = run_of(tmp_path).machine()
    assert limits["copy_bytes_per_s"] > 1e6 and limits["matmul_flops_per_s"] > 1e6


@pytest.mark.slow
def test_steps_are_timed(tmp_path: Path) -> None:
    need_interpreter()
    (tmp_path / "machine.jsonl").write_text(json.dumps({"copy_bytes_per_s": 1e11, "matmul_flops_per_s": 1e12}))
    cuda.run_section("steps", run_of(tmp_path))
    findings = cuda.read_findings(tmp_path / "steps.jsonl")
    assert cuda.is_complete(findings) and findings[0]["kernels"].startswith("cuda interpreted")
    assert [f["decode"]["batch"] for f in findings if "decode" in f] == [1, 3]
    assert all(0 < f["decode"]["share_of_limit"] < 1 for f in findings if "decode" in f)


def test_every_case_runs_and_sees_a_difference() -> None:
    """On the reference twice: equal; on other numbers: not."""
    for name, case in cases(tiny=True):
        want = case(Side(ReferenceOps(), "float32"))
        assert error_of(want, case(Side(ReferenceOps(), "float32"))) == 0, name
        other = [a + (1 if a.dtype.kind == "i" else 0.1 * abs(a).max()) for a in want]
        assert error_of(want, other) > (0 if want[0].dtype.kind == "i" else 1e-2), name


def results(share: float) -> dict[str, list[dict[str, Any]]]:
    done = {"complete": True}
    step = {"step_ms": 5.0, "limit_ms": 4.5, "limited_by": "bytes", "context": 1024}
    return {
        "machine": [{"device": "X", "copy_bytes_per_s": 3e12, "matmul_flops_per_s": 7e14}, done],
        "ops": [{"op": "a", "ok": True}, {"op": "b", "ok": share > 0.5}, done],
        "models": [{"model": "llama", "ok": True}],
        "grammars": [{"check": "regex", "ok": True}, {"check": "json_schema", "skipped": "no llguidance"}, done],
        "images": [{"check": "Gemma 3", "ok": True}, done],
        "checkpoints": [],
        "steps": [
            {"gap": {"batch": 32, "gap_share": 1 - share, "step_ms": 9.0}},
            {"decode": {"batch": 1, "share_of_limit": share, **step}},
            {"prefill": {"prompts": 8, "prompt_len": 4096, "share_of_matmul_rate": share, "tokens_per_s": 1.0}},
            {"prefix": {"ratio": 10 * share}},
            {"fixed order": {"batch": 1, **step}},
            done,
        ],
        "quantized": [{"weights": "int4", "batch": 16, "times_bfloat16": 2.5, "share_of_limit": share, **step}, done],
        "ours": [{"tokens_per_s": 1000 * share}, done],
        "transformers": [],
    }


def test_what_is_reached_and_what_is_not() -> None:
    def found(share: float, judged: bool = True) -> dict[str, str]:
        return {what: verdict for what, _, _, verdict in cuda.verdicts(results(share), judged)}

    good, bad = found(0.96), found(0.4)
    assert (
        good["decode, batch 1, 1024 context"] == good["prefill 8 x 4096"] == good["shared prefix"] == good["every op"] == "pass"
    )
    assert bad["decode, batch 1, 1024 context"] == bad["prefill 8 x 4096"] == bad["every op"] == bad["shared prefix"] == "FAIL"
    assert good["host gap, batch 32"] == "pass" and bad["host gap, batch 32"] == "FAIL"
    assert good["offline throughput"] == "missing", "nothing to compare with"
    assert good["every model"] == "FAIL", "the section was cut off"
    assert good["every grammar"] == "missing" and good["every image"] == "pass" and good["every checkpoint"] == "missing"
    assert found(0.4, judged=False)["shared prefix"] == "not judged"
    text = cuda.report(results(0.4), True)
    assert "| shared prefix | 6x without the cache | 4.0x | FAIL |" in text and '"op": "b"' in text
    assert "Deterministic mode, decode, batch 1: 5.00 ms, else 5.00 ms." in text
    assert "1 of 1, json_schema: no llguidance | missing |" in text
    assert "int4, decode, batch 16: 5.00 ms, 40.0% of the limit by bytes, 2.50 times as fast as bfloat16." in text


REFERENCE = checks.Where("cpu", "reference", tiny=True)
"""in place of the device"""


def test_grammars_are_checked(tmp_path: Path) -> None:
    found = list(checks.grammars(tmp_path, REFERENCE))
    assert [f["check"] for f in found[:2]] == ["json_schema, temperature 0", "regex, temperature 1"]
    assert all(f["ok"] and f["valid"] == f["ended"] for f in found[:2]), found
    assert found[2]["with_drafts"] > 0 == found[2]["ahead"] and not found[2]["ok"], "the reference does not run ahead"
    text = '{"name":"x","age":7,"tags":["the"],"ok":true}'
    assert checks._fits_schema(text)
    assert not any(
        checks._fits_schema(text.replace(*change)) for change in (("7", "151"), ("the", "a"), ("x", "xxxxxxx"), ("}", ""))
    )


def test_images_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(checks.images(tmp_path / "same", REFERENCE))
    assert len(found) == 5 and all(f["ok"] and f["error"] == 0 for f in found)
    count, exact = iter(range(100)), checks._rows_of
    monkeypatch.setattr(checks, "_rows_of", lambda *args: exact(*args) * (1 + 1e-3 * next(count)))
    assert not any(f["ok"] for f in checks.images(tmp_path / "other", REFERENCE))


def test_tiers_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's pool is in host memory: nothing is behind it, and the check says so."""
    back, copies = checks.tiers(tmp_path, REFERENCE)
    assert not back["ok"] and back["cached"][1] == 48 > back["cached"][-1] and "problem" not in back
    assert copies["ok"]
    monkeypatch.setattr(ReferenceRuns, "read", lambda self, slots, out: None)
    assert not checks._copies(REFERENCE)["ok"]


def test_checkpoints_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, config, bar = quantized.FORMS["gptq"]
    monkeypatch.setattr(checks, "TINY_FORMS", ("gptq", "gptq read wrongly"))
    monkeypatch.setitem(quantized.FORMS, "gptq read wrongly", (pack, {**config, "checkpoint_format": "gptq_v2"}, bar))
    assert [f["ok"] for f in checks.checkpoints(tmp_path, REFERENCE)] == [True, False]


def test_a_check_that_lacks_a_package_or_fails_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert [f["skipped"] for f in checks.grammars(tmp_path, REFERENCE)] == ["no llguidance"]
    tries = iter([ValueError("one is broken")])

    def load(*_: Any) -> dict[str, Any]:
        for problem in tries:
            raise problem
        return {"ok": True}

    monkeypatch.setattr(checks, "_load", load)
    found = list(checks.checkpoints(tmp_path, REFERENCE))
    assert [f["ok"] for f in found] == [False, True, True] and found[0]["problem"] == "ValueError: one is broken"


STUBBORN = """#!{python}
# a section: `ops` writes half a finding and hangs, with a child that hangs as well; every other fails
import subprocess, sys, time
from pathlib import Path
name, out = sys.argv[sys.argv.index("--section") + 1], Path(sys.argv[sys.argv.index("--out") + 1])
print(name, "says why", "without graphs" if "--no-graphs" in sys.argv else "", flush=True)
if name != "ops":
    sys.exit(1)
child = subprocess.Popen(["sleep", "600"])
(out / "child").write_text(str(child.pid))
(out / "ops.jsonl").write_text('{{"op": "a", "ok": true}}\\n{{"op": "b", "o')
time.sleep(600)
"""


def test_a_section_that_fails_or_hangs_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours.jsonl").write_text('{"tokens_per_s": 5.0}\n{"complete": true}\n')
    program = tmp_path / "program"
    program.write_text(STUBBORN.format(python=sys.executable))
    program.chmod(0o700)
    monkeypatch.setattr(cuda.sys, "executable", str(program))
    monkeypatch.setitem(cuda.SECTIONS, "ops", (cuda.SECTIONS["ops"][0], 3.0))
    assert cuda.main(["--tiny", "--out", str(tmp_path), "--sections", "ops,steps,ours", "--resume"]) == 1
    wait_dead([int((tmp_path / "child").read_text())])
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["ops"][0] == {"op": "a", "ok": True}
    assert written["ours"] == [{"tokens_per_s": 5.0}, {"complete": True}], "what is complete is kept"
    assert [f["failed"] for f in written["steps"]] == ["failed with status 1"] * 2
    assert [f["said"].split("why")[1].strip() for f in written["steps"]] == ["", "without graphs"]
    text = (tmp_path / "results.md").read_text()
    assert "1 of 1, not complete" in text and re.search(r"ops cut off after \d+ s:\n\n```\nops says why", text)


def test_processes_share_the_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case is answered once, by whichever process; one that dies costs its own case alone."""
    need_interpreter()
    names = [name for name, _ in cases(tiny=True)]
    some = [(("float32", "bfloat16")[i % 2], i) for i in range(0, len(names), 12)]
    found = list(op_checks._share_out(some, "cpu", True, 2))
    assert sorted((f["dtype"], f["op"]) for f in found) == sorted((dtype, names[i]) for dtype, i in some)
    assert all(f["ok"] for f in found)
    monkeypatch.setattr(op_checks, "_work", dies_at_the_third)
    found = list(op_checks._share_out([("float32", i) for i in range(6)], "cpu", True, 1))
    assert [(f["op"], f["ok"]) for f in found] == [(names[i], i not in (2, 5)) for i in range(6)]


def dies_at_the_third(answers: Any, tasks: list[op_checks.TASK], device: str, tiny: bool) -> None:
    names = [name for name, _ in cases(tiny)]
    for task in tasks[:2]:
        answers.send({**op_checks.finding_of(task, names[task[1]]), "ok": True})
        answers.send(True)
    answers.close()
    os._exit(1)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_whole_script(tmp_path: Path) -> None:
    need_interpreter()
    command = [sys.executable, "-m", "benchmarks.cuda", "--interpret", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2700)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: something differs, which the table says
    for name in cuda.SECTIONS:
        findings = cuda.read_findings(tmp_path / f"{name}.jsonl")
        assert cuda.is_complete(findings), name
        assert not [f for f in findings if "problem" in f or "skipped" in f], "an op that does not run at all"
    for section in ("model", "grammar", "image", "checkpoint", "tier"):
        assert re.search(rf"\| every {section} \|.*\| pass \|", done.stdout), section
