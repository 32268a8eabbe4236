"""The families of encoders, as rows: what config.json and safetensors files call the parts of a bidirectional model.

    post-norm   x = norm(x + attention(x));  x = norm(x + mlp(x))      BERT and most others
    pre-norm    x += attention(norm(x));     x += mlp(norm(x))         ModernBERT

Positions are a learnt table, rotations, or biases of the scores by distance. A class `...ForSequenceClassification` has a head behind
its first row (or the mean of all) and judges a text or a pair of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.model.kernels.ops import Activator
from sglang.srt.model.model_config import RopeConfig
from sglang.srt.model.weights.config_fields import MAX_EPS, MAX_ID, MAX_LAYERS, MAX_POSITIONS, MIN_EPS, Fields, read_json
from sglang.srt.model.weights.families.family import PLAIN_GATES
from sglang.srt.model.weights.rope_reader import MAX_FACTOR, read_local_rope, read_rope

MAX_LABELS = 1 << 16
MAX_REACH = 128
"""distance from which MPNet's biases are all alike"""


@dataclass(frozen=True)
class EncoderNames:
    """Names of tensors, without the prefix that files of whole models have. Those of a layer stand behind `layer` and its number."""

    layer: str
    qkv: tuple[str, ...]
    """of one matrix each, or of one for all three"""
    output: str
    first: tuple[str, ...]
    """of the feed-forward layer: one, or where it is gated gate and up, or one matrix for both"""
    second: str
    norms: tuple[str, str]
    """of attention, of the feed-forward layer"""
    words: str = "embeddings.word_embeddings"
    norm: str = "embeddings.LayerNorm"
    positions: str = ""
    types: str = ""
    last_norm: str = ""
    distances: str = ""
    """biases of attention scores by distance"""
    up_first: bool = False
    """of a matrix for gate and up, up is the upper half"""


@dataclass(frozen=True)
class HeadStep:
    """norm(activation(weight @ x + bias)) of a head. `activation`: a name of torch.nn."""

    name: str
    activation: str = "Identity"
    norm: str = ""
    has_bias: bool = True


@dataclass(frozen=True)
class EncoderConfig:
    """One encoder as numbers."""

    architecture: str
    names: EncoderNames
    prefix: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    context_len: int
    num_types: int
    norm_eps: float
    activation: Activator
    first_position: int = 0
    """row of the table of positions that is a text's first"""
    is_gated: bool = False
    is_pre_norm: bool = False
    has_norm_bias: bool = True
    biases: tuple[bool, bool, bool, bool] = (True, True, True, True)
    """whether q, k and v, the output of attention, and the two matrices of the feed-forward layer have biases"""
    rope: RopeConfig | None = None
    local_rope: RopeConfig | None = None
    """of the layers with a window, where it differs"""
    window: int = 0
    """how far a row sees to either side in the layers of `windowed_layers`"""
    windowed_layers: tuple[bool, ...] = ()
    num_buckets: int = 0
    """of distances that share a bias"""
    num_labels: int = 0
    """of a classifier"""
    head: tuple[HeadStep, ...] = ()
    head_pooling: str = "cls"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class EncoderFamily:
    """One row. `name`: class names are built from it."""

    name: str
    architecture: str
    names: EncoderNames
    prefix: str = ""
    """stands before all names in files of models with a head"""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    spelled: Mapping[str, str] = field(default_factory=dict)
    shape: Mapping[str, Any] = field(default_factory=dict)
    """fields of EncoderConfig that are the same for all its models"""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """field -> the values that are supported, beside none"""
    head: tuple[HeadStep, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        return (f"{self.name}Model", f"{self.name}ForMaskedLM", *([self.classifier] if self.head else []))

    @property
    def classifier(self) -> str:
        return f"{self.name}ForSequenceClassification"


_BERT_NAMES = EncoderNames(
    layer="encoder.layer.",
    qkv=tuple(f"attention.self.{part}" for part in ("query", "key", "value")),
    output="attention.output.dense",
    first=("intermediate.dense",),
    second="output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    positions="embeddings.position_embeddings",
    types="embeddings.token_type_embeddings",
)
_BERT_DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
_ABSOLUTE = {"position_embedding_type": ("absolute",), "is_decoder": (False,)}
_POOLER = (HeadStep("pooler.dense", "Tanh"), HeadStep("classifier"))
_TWO_DENSE = (HeadStep("classifier.dense", "Tanh"), HeadStep("classifier.out_proj"))
_ROBERTA: dict[str, Any] = {
    "names": _BERT_NAMES,
    "prefix": "roberta.",
    "defaults": {**_BERT_DEFAULTS, "pad_token_id": 1},
    "shape": {"first_position": 2},
    "only": _ABSOLUTE,
    "head": _TWO_DENSE,
}
ENCODER_FAMILIES: tuple[EncoderFamily, ...] = (
    EncoderFamily("Bert", "bert", _BERT_NAMES, "bert.", _BERT_DEFAULTS, only=_ABSOLUTE, head=_POOLER),
    EncoderFamily("Roberta", "roberta", **_ROBERTA),
    EncoderFamily("XLMRoberta", "xlm-roberta", **_ROBERTA),
    EncoderFamily("Camembert", "camembert", **_ROBERTA),
    EncoderFamily(
        "MPNet",
        "mpnet",
        replace(
            _BERT_NAMES,
            qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
            output="attention.attn.o",
            norms=("attention.LayerNorm", "output.LayerNorm"),
            types="",
            distances="encoder.relative_attention_bias",
        ),
        prefix="mpnet.",
        defaults={**_BERT_DEFAULTS, "vocab_size": 30527, "pad_token_id": 1},
        shape={"first_position": 2, "num_types": 0, "num_buckets": 32},
        only={"relative_attention_num_buckets": (32,), "pad_token_id": (1,)},
        head=_TWO_DENSE,
    ),
    EncoderFamily(
        "DistilBert",
        "distilbert",
        EncoderNames(
            layer="transformer.layer.",
            qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            output="attention.out_lin",
            first=("ffn.lin1",),
            second="ffn.lin2",
            norms=("sa_layer_norm", "output_layer_norm"),
            positions="embeddings.position_embeddings",
        ),
        prefix="distilbert.",
        defaults=_BERT_DEFAULTS,
        spelled={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
        shape={"num_types": 0},
        head=(HeadStep("pre_classifier", "ReLU"), HeadStep("classifier")),
    ),
    EncoderFamily(
        "ModernBert",
        "modernbert",
        EncoderNames(
            layer="layers.",
            qkv=("attn.Wqkv",),
            output="attn.Wo",
            first=("mlp.Wi",),
            second="mlp.Wo",
            norms=("attn_norm", "mlp_norm"),
            words="embeddings.tok_embeddings",
            norm="embeddings.norm",
            last_norm="final_norm",
        ),
        prefix="model.",
        defaults={"hidden_act": "gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 8192, "local_attention": 128},
        spelled={"hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps"},
        shape={"num_types": 0, "is_gated": True, "is_pre_norm": True},
        only={"position_embedding_type": ("absolute",)},
        head=(HeadStep("head.dense", norm="head.norm"), HeadStep("classifier")),
    ),
    EncoderFamily(
        "NomicBert",
        "nomic_bert",
        EncoderNames(
            layer="encoder.layers.",
            qkv=("attn.Wqkv",),
            output="attn.out_proj",
            first=("mlp.fc12", "mlp.fc11"),
            second="mlp.fc2",
            norms=("norm1", "norm2"),
            norm="emb_ln",
            types="embeddings.token_type_embeddings",
        ),
        prefix="nomic_bert.",
        defaults={"hidden_act": "silu", "layer_norm_eps": 1e-12, "max_position_embeddings": 2048, "type_vocab_size": 2},
        spelled={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "intermediate_size": "n_inner",
            "max_position_embeddings": "n_positions",
            "layer_norm_eps": "layer_norm_epsilon",
            "hidden_act": "activation_function",
            "rope_theta": "rotary_emb_base",
        },
        shape={"is_gated": True, "biases": (False, False, False, False)},
        only={
            "activation_function": ("swiglu",),
            "rotary_emb_interleaved": (False,),
            "rotary_emb_fraction": (1.0, 1),
            "prenorm": (False,),
            "parallel_block": (False,),
            "use_rms_norm": (False,),
            "causal": (False,),
            "qkv_proj_bias": (False,),
            "mlp_fc1_bias": (False,),
            "mlp_fc2_bias": (False,),
            "num_experts": (0,),
            "moe_every_n_layers": (0,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "rotary_emb_scale_base": (),
            "rotary_scaling_factor": (),
        },
    ),
    *(
        EncoderFamily(
            name,
            "gte",
            EncoderNames(
                layer="encoder.layer.",
                qkv=("attention.qkv_proj",),
                output="attention.o_proj",
                first=("mlp.up_gate_proj",),
                second="mlp.down_proj",
                norms=("attn_ln", "mlp_ln"),
                types="embeddings.token_type_embeddings",
                up_first=True,
            ),
            prefix=prefix,
            defaults={**_BERT_DEFAULTS, "max_position_embeddings": 8192, "type_vocab_size": 1, "rope_theta": theta},
            shape={"is_gated": True, "biases": (True, True, False, True)},
            only={
                "position_embedding_type": ("rope",),
                "layer_norm_type": ("layer_norm",),
                "logn_attention_scale": (False,),
                "pack_qkv": (True,),
            },
            head=_POOLER,
        )
        for name, prefix, theta in (("Gte", "gte.", 160_000.0), ("New", "new.", 10_000.0))
    ),
)
"""GTE's first files are of the class NewModel"""


def find_encoder(folder: Path) -> tuple[EncoderFamily, str] | None:
    """The family and class of the encoder in a folder, if there is one."""
    path = folder / "config.json"
    classes = read_json(path).get("architectures") if path.is_file() else None
    if not isinstance(classes, list):
        return None
    for family in ENCODER_FAMILIES:
        for name in family.class_names:
            if name in classes:
                return family, name
    return None


def read_encoder_config(folder: Path, overrides: Mapping[str, Any]) -> EncoderConfig:
    """Raises ModelError for a config that is damaged or asks for what is not done here."""
    found = find_encoder(folder)
    assert found is not None
    path = folder / "config.json"
    return parse_encoder_config(read_json(path), path, *found, overrides)


def parse_encoder_config(
    raw: Mapping[str, Any], source: Path, family: EncoderFamily, class_name: str, overrides: Mapping[str, Any]
) -> EncoderConfig:
    """A config.json's content as an EncoderConfig; `source` is named in errors."""
    fields = Fields(raw, source, family.defaults, overrides, spelled=family.spelled)
    fields.read.update(("architectures", "model_type"))
    for name, known in family.only.items():
        value = fields.raw.get(name)
        fields.read.add(name)
        if value is not None and value not in known:
            says = f"must be {' or '.join(map(shown, known))}" if known else "is not supported"
            raise fields.bad(name, f"{says}, and is {shown(value)}")
    config = _common(fields, family)
    if family.architecture in _PECULIAR:
        config = _PECULIAR[family.architecture](fields, config)
    if class_name == family.classifier:
        config = replace(config, num_labels=count_labels(fields), head=config.head or family.head)
    else:
        config = replace(config, head=())
    fields.check_used()
    return config


def _common(fields: Fields, family: EncoderFamily) -> EncoderConfig:
    hidden_size, num_heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    if hidden_size % num_heads:
        raise fields.bad("hidden_size", f"({hidden_size}) must be a multiple of num_attention_heads ({num_heads})")
    if fields.get("head_dim") not in (None, hidden_size // num_heads):
        raise fields.bad("head_dim", f"must be {hidden_size // num_heads}, and is {shown(fields.get('head_dim'))}")
    num_types = fields.get("type_vocab_size")
    if num_types is None or (type(num_types) is int and num_types == 0):
        num_types = 0
    else:
        num_types = fields.count("type_vocab_size")
    activation = "silu" if fields.get("hidden_act") == "swiglu" else fields.choice("hidden_act", PLAIN_GATES)
    shape = {"first_position": 0, "num_types": num_types, **family.shape}
    if shape["first_position"]:
        shape["first_position"] = _padding(fields) + 1
    rows = fields.count("max_position_embeddings", most=MAX_POSITIONS)
    if rows <= shape["first_position"]:
        raise fields.bad("max_position_embeddings", f"({rows}) leaves no positions after pad_token_id")
    return EncoderConfig(
        architecture=family.architecture,
        names=family.names,
        prefix=family.prefix,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.count("num_hidden_layers", most=MAX_LAYERS),
        num_heads=num_heads,
        intermediate_size=fields.count("intermediate_size"),
        context_len=rows - shape["first_position"],
        norm_eps=fields.number("layer_norm_eps", above=MIN_EPS, most=MAX_EPS),
        activation=activation,
        **shape,
    )


def _padding(fields: Fields) -> int:
    """Positions count from behind the padding's."""
    value = fields.get("pad_token_id")
    if type(value) is not int or not 0 <= value < MAX_ID:
        raise fields.bad("pad_token_id", f"must be a token id, and is {shown(value)}")
    return value


def count_labels(fields: Fields) -> int:
    """The number of a classifier's labels."""
    names = fields.get("id2label")
    fields.read.add("label2id")
    if isinstance(names, dict) and names:
        return len(names)
    return fields.count("num_labels", 2, most=MAX_LABELS)


def _modernbert(fields: Fields, config: EncoderConfig) -> EncoderConfig:
    attention, mlp, norms = (fields.flag(f"{part}_bias") for part in ("attention", "mlp", "norm"))
    period = fields.count("global_attn_every_n_layers", 3)
    kinds = fields.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if i % period else "full_attention" for i in range(config.num_layers)]
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) < config.num_layers or any(kind not in known for kind in kinds):
        raise fields.bad("layer_types", f"must name {config.num_layers} layers ({' or '.join(known)}), and is {shown(kinds)}")
    rotary = replace(config, rope=_rope(fields, config, 160_000.0, "global_rope_theta"))
    activation = fields.choice(
        "classifier_activation", {"gelu": "GELU", "relu": "ReLU", "silu": "SiLU", "tanh": "Tanh"}, "gelu"
    )
    dense, last = HeadStep("head.dense", activation, "head.norm", fields.flag("classifier_bias")), HeadStep("classifier")
    return replace(
        rotary,
        biases=(attention, attention, mlp, mlp),
        has_norm_bias=norms,
        local_rope=read_local_rope(fields, config.head_dim, config.context_len, 10_000.0, "local_rope_theta"),
        window=max(1, fields.count("local_attention", most=MAX_ID) // 2),
        windowed_layers=tuple(kind == "sliding_attention" for kind in kinds[: config.num_layers]),
        head=(dense, last),
        head_pooling=fields.choice("classifier_pooling", {"cls": "cls", "mean": "mean"}, "cls"),
    )


def _rope(fields: Fields, config: EncoderConfig, theta: float, name: str = "") -> RopeConfig:
    """`name`: what config.json calls the base, where that is not rope_theta."""
    spelled = Fields(fields.raw, fields.source, fields.defaults, fields.overrides, spelled={"rope_theta": name} if name else {})
    rope = read_rope(spelled, config.head_dim, config.context_len, theta)
    fields.read |= spelled.read
    return rope


def _nomic(fields: Fields, config: EncoderConfig) -> EncoderConfig:
    return replace(config, rope=_rope(fields, config, 1000.0, "rotary_emb_base"))


def _gte(fields: Fields, config: EncoderConfig) -> EncoderConfig:
    """ "ntk" makes the base larger by the factor, and all frequencies lower by as much as keeps the slowest where it would be."""
    scaling = fields.object("rope_scaling")
    theta = fields.number("rope_theta", above=1.0)
    if scaling.get("type", scaling.get("rope_type")) != "ntk":
        return replace(config, rope=_rope(fields, config, theta))
    inner = Fields(scaling, fields.source, where="rope_scaling.")
    factor = inner.number("factor", above=0.0, most=MAX_FACTOR)
    if inner.get("mixed_b") is not None:
        raise inner.bad("mixed_b", "is not supported")
    if factor <= 1:
        return replace(config, rope=RopeConfig(theta, config.head_dim))
    pairs = config.head_dim // 2
    slower = (factor ** (2 / config.head_dim),) * pairs
    return replace(config, rope=RopeConfig(theta * factor, config.head_dim, freq_divisors=slower))


_PECULIAR: dict[str, Callable[[Fields, EncoderConfig], EncoderConfig]] = {
    "modernbert": _modernbert,
    "nomic_bert": _nomic,
    "gte": _gte,
}
