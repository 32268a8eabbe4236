"""--models FILE and --model NAME=PATH: what they mean, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sglang.cluster.metrics import joined_metrics
from sglang.cluster.model_list import ServedModel, list_models, write_flags
from sglang.commands.arguments import CommandError
from sglang.commands.serve import split_models
from sglang.srt.config import DEFAULT_MODEL
from sglang.srt.errors import ConfigError
from sglang.srt.server_args import ServerArgs


def listed(tmp_path: Path, text: str, **flags: object) -> dict[str, ServedModel]:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return {model.name: model for model in list_models(ServerArgs(models=str(path), **flags), {})}


def test_a_path_or_flags(tmp_path: Path) -> None:
    text = (
        "a: x\nb:\n  model-path: y\n  context_length: 64\n  enable-metrics: yes\n  preload: on\n  keep-alive: 0.5\norg/c:d: z\n"
    )
    found = listed(tmp_path, text, threads=3, port=8000, api_key="secret", keep_alive=9.0)
    assert list(found) == ["a", "b", "org/c:d"]
    assert found["a"] == ServedModel("a", {"model_path": "x", "threads": "3"}, False, 9.0)
    flags = {"model_path": "y", "threads": "3", "context_length": "64", "enable_metrics": "true"}
    assert found["b"] == ServedModel("b", flags, True, 0.5)


def test_what_is_said_holds_also_where_it_is_the_default(tmp_path: Path) -> None:
    """The default model by its name, and a flag that takes back what holds for all models."""
    path = tmp_path / "models.yaml"
    path.write_text(f"a: {DEFAULT_MODEL}\nb:\n  model-path: x\n  schedule-policy: {ServerArgs.schedule_policy}\nc: x\n")
    found = {
        model.name: model for model in list_models(ServerArgs(models=str(path), schedule_policy="fcfs"), {"d": DEFAULT_MODEL})
    }
    assert found["a"].path == found["d"].path == DEFAULT_MODEL
    policies = [found[name].flags["schedule_policy"] for name in "abc"]
    assert policies == ["fcfs", ServerArgs.schedule_policy, "fcfs"] and ServerArgs.schedule_policy != "fcfs"


def test_those_of_the_command_line_come_after(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("a: x\n")
    assert [m.path for m in list_models(ServerArgs(models=str(path)), {"b": "y"})] == ["x", "y"]
    with pytest.raises(ConfigError, match="two models with the name 'a'"):
        list_models(ServerArgs(models=str(path)), {"a": "y"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no model"),
        ("- a\n", "names no model"),
        ("a:\n", "line 1: a needs a path"),
        ("a: [x]\n", "line 1: a needs a path"),
        ("a:\n  context-length: 3\n", "no model-path"),
        ("a:\n  model-path: x\n  preload: perhaps\n", "line 3: preload must be true or false"),
        ("a:\n  model-path: x\n  keep-alive: -1\n", "line 3: keep-alive must be a number"),
        ("a:\n  model-path: x\n  port: 3\n", "line 3.* is for all models together"),
        ("a:\n  model-path: x\n  api-key: k\n", "is for all models together"),
        ("default: x\n", "cannot be the name"),
        ("a b: x\n", "cannot be the name"),
        ("../a: x\n", "cannot be the name"),
        ("? {a: b}\n: x\n", "cannot be the name"),
        ("a: x\na: y\n", "two models with the name 'a'"),
        ("a: &x y\n", "anchor"),
        ("a: [\n", "not YAML"),
    ],
    ids=range(16),
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        listed(tmp_path, text)


def test_an_unknown_flag_of_a_model_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        listed(tmp_path, "a:\n  model-path: x\n  context-lenght: 3\n")
    said = capsys.readouterr().err
    assert "line 3" in said and "context-length" in said


def test_names_and_paths_of_a_command_line(tmp_path: Path) -> None:
    rest = ["--port", "1", "--model=only.gguf"]
    assert split_models(["--model", "a=x", *rest, "--model=b=y=z"]) == (rest, {"a": "x", "b": "y=z"})
    path = tmp_path / "a=b"
    path.mkdir()
    assert split_models(["--model", str(path)]) == (["--model", str(path)], {})
    assert split_models(["--model"]) == (["--model", ""], {})
    with pytest.raises(CommandError, match="twice"):
        split_models(["--model", "a=x", "--model", "a=y"])


def test_flags_of_a_server_are_private_and_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "flags"
    write_flags(str(path), {"model_path": "no", "context_length": "0123", "chat_template": "a: b #c\n"})
    assert path.stat().st_mode & 0o777 == 0o600
    assert yaml.load(path.read_text(), yaml.BaseLoader)["model-path"] == "no"


def test_metrics_of_several_servers_stand_together() -> None:
    one = '# HELP a text\n# TYPE a gauge\na{model_name="x"} 1\n# HELP b more\n# TYPE b counter\nb_total 2\n'
    two = '# HELP b more\n# TYPE b counter\nb_total{x="y"} 3\n# HELP a text\n# TYPE a gauge\na{model_name="z"} 4\n'
    expected = '# HELP a text\n# TYPE a gauge\na{model_name="x"} 1\na{model_name="z"} 4\n'
    assert joined_metrics([one, two]) == expected + '# HELP b more\n# TYPE b counter\nb_total 2\nb_total{x="y"} 3\n'
    assert joined_metrics([]) == "\n"
    assert joined_metrics(['# HELP a t\n# TYPE a gauge\na{x="y\u2028z"} 1\n']).count("\n") == 3
