"""The table of sampling fields and what is computed from it."""

from __future__ import annotations

import re

import pytest

import sglang as sgl
from sglang.lang.ir import Gen, Select
from sglang.lang.sampling import ALL_WIRES, FIELDS, resolve, take_options, to_api, to_native


def test_every_field_names_a_parameter_of_the_runtime() -> None:
    sampling_params = pytest.importorskip("sglang.srt.sampling_params")
    known = set(sampling_params.SamplingParams.__struct_fields__)
    for name, wire in ALL_WIRES.items():
        assert wire.beside or wire.native in known, name


def test_defaults_are_those_of_the_runtime() -> None:
    sampling_params = pytest.importorskip("sglang.srt.sampling_params")
    params, _ = to_native({})
    assert sampling_params.parse_sampling_params(params) == sampling_params.SamplingParams()


def test_gen_overrides_run_and_none_inherits() -> None:
    run = take_options({"temperature": 0.5, "top_p": 0.9, "question": "kept"})
    assert run == {"temperature": 0.5, "top_p": 0.9}
    assert resolve(run, {"temperature": 0.1})["temperature"] == 0.1
    piece = sgl.gen("x", temperature=None, top_p=0.2)
    assert isinstance(piece, Gen)
    assert dict(piece.options) == {"top_p": 0.2}


def test_max_tokens() -> None:
    def options(expr: object) -> dict[str, object]:
        assert isinstance(expr, Gen)
        return dict(expr.options)

    assert options(sgl.gen("x")) == {}
    assert options(sgl.gen("x", 64)) == {"max_new_tokens": 64}
    assert options(sgl.gen("x", max_tokens=None)) == {"max_new_tokens": None}
    assert options(sgl.gen("x", min_tokens=3)) == {"min_new_tokens": 3}
    assert resolve({}, {})["max_new_tokens"] == 128
    assert resolve({"max_new_tokens": 7}, {})["max_new_tokens"] == 7
    assert to_native({"max_new_tokens": None})[0]["max_new_tokens"] is None


def test_stop_lists_are_never_mutated() -> None:
    mine = ["\n"]
    for _ in range(3):
        assert resolve({"stop": mine}, {}, ("<end>",))["stop"] == ["\n", "<end>"]
    params, _ = to_native(resolve({"stop": mine}, {}))
    params["stop"].append("more")
    assert mine == ["\n"]
    assert resolve({"stop": "a"}, {}, ("b",))["stop"] == ["a", "b"]
    assert FIELDS["stop"].default == ()


def test_a_typo_gets_the_nearest_name() -> None:
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        sgl.gen("x", temprature=0.1)  # type: ignore[call-arg]


def test_bad_constraints_fail_where_they_are_written() -> None:
    with pytest.raises(re.error):
        sgl.gen("x", regex="(")
    with pytest.raises(ValueError, match="not JSON"):
        sgl.gen("x", json_schema="{")
    with pytest.raises(ValueError, match="one constraint"):
        sgl.gen("x", regex="a", json_schema="{}")
    piece = sgl.gen("x", json_schema={"type": "integer"})  # type: ignore[typeddict-item]
    assert isinstance(piece, Gen) and piece.options["json_schema"] == '{"type": "integer"}'


def test_choices_make_a_select() -> None:
    piece = sgl.gen("x", choices=["a", "b"])
    assert isinstance(piece, Select) and piece.choices == ("a", "b")
    with pytest.warns(UserWarning, match="max_new_tokens|temperature|top_p"):
        sgl.gen("x", choices=["a"], top_p=0.5)
    for bad in ([], [""], None):
        with pytest.raises(ValueError):
            sgl.select("x", bad)
    with pytest.raises(ValueError):
        sgl.gen("x", choices=[])
    with pytest.raises(TypeError):
        sgl.select("x", "abc")
    with pytest.raises(ValueError, match="temperature"):
        sgl.select("x", ["a"], temperature=1.0)


def test_dtype_and_regex_warns() -> None:
    with pytest.warns(UserWarning, match="uses dtype"):
        sgl.gen("x", dtype=int, regex="a")


def test_names_of_other_apis() -> None:
    options = resolve({"top_k": 5, "seed": 1, "temperature": 0.5}, {"max_new_tokens": 9}, ("\n",))
    kwargs, missing = to_api(options, "openai")
    assert kwargs == {"temperature": 0.5, "max_tokens": 9, "stop": ["\n"], "seed": 1}
    assert missing == ["top_k"]
    kwargs, missing = to_api(options, "anthropic")
    assert kwargs == {"temperature": 0.5, "max_tokens": 9, "stop_sequences": ["\n"], "top_k": 5}
    assert missing == ["seed"]


def test_choices_are_scored_by_the_adapter_that_is_asked_for() -> None:
    """Of the gen, and of no other expression; the other options of a gen do not apply."""
    assert sgl.gen("x", choices=["a", "b"], lora="sql").lora == "sql"  # type: ignore[attr-defined]
    assert sgl.select("x", ["a", "b"], lora="sql").options == {"choices": ["a", "b"], "lora": "sql"}  # type: ignore[attr-defined]
    assert sgl.select("x", ["a", "b"]).options == {"choices": ["a", "b"]}  # type: ignore[attr-defined]
