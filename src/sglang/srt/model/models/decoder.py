"""The frame of all decoders: embedding, layers, final norm and head.

    x = embed(ids)
    for each layer:  x += ...          two halves, `attend` and `feed` (layer.py)
    logits = head(norm(x))

A family that differs only in its config uses this frame unchanged; one with its own layers is a subclass that creates them
(`create_mixer`, `create_channels`, `create_layer`).

Additions to x are deferred: a value stays in `delta` and the next norm adds it, which saves a pass over memory.

What follows the last attention is computed only for the rows whose logits are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sglang.srt.model.kernels.ops import KVLayer, Ops, Weight
from sglang.srt.model.layers.attention import Attention
from sglang.srt.model.layers.buffers import Readers, StepBuffers
from sglang.srt.model.layers.embedding import Embedding, Head
from sglang.srt.model.layers.experts import Experts
from sglang.srt.model.layers.latent import LatentAttention
from sglang.srt.model.layers.media import MediaSeam, StepRope
from sglang.srt.model.layers.mlp import ChannelMixer, create_mlp
from sglang.srt.model.layers.recurrent import Beside, create_recurrent
from sglang.srt.model.layers.rope import create_rope, no_rope
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.models.layer import HalfLayer, Layer, Mixer, ParallelLayer, Place, SerialLayer


class Decoder:
    """The frame of all decoders. `body` runs the layers over the step's rows, `head` turns selected rows into logits.
    `num_positions`: how far rotation tables reach."""

    def __init__(self, ops: Ops, source: WeightSource, config: ModelConfig, num_positions: int) -> None:
        self.config = config
        self.readers = Readers()
        self.embedding = Embedding(ops, source, config)
        rope = create_rope(ops, config, config.rope, num_positions)
        self.media = MediaSeam(ops, config, rope) if config.vision is not None else None
        if config.rope_axes:
            rope = StepRope(rope.cos, rope.sin)
        local_rope = create_rope(ops, config, config.local_rope, num_positions) if config.local_rope else rope
        windows = config.windowed_layers or (False,) * config.num_layers
        still = config.unrotated_layers or (False,) * config.num_layers
        unrotated = no_rope(ops, num_positions) if any(still) else rope
        ropes = [unrotated if s else local_rope if local else rope for s, local in zip(still, windows, strict=True)]
        self.layers: list[Layer] = [
            self.create_layer(
                Place(ops, source, config.of_layer(i), self.readers, i, f"model.layers.{i}", ropes[i], windows[i])
            )
            for i in range(config.num_layers)
        ]
        self.ops = ops
        self.output = Head(ops, source, config, self.embedding)
        self.readers.head_in.append(self.output.weight)

    # --- what a family may have of its own ------------------------------------------------------------------------------------

    def create_layer(self, place: Place) -> Layer:
        if self.config.halves:
            mixes = self.config.halves[place.index] == "mixer"
            return (
                HalfLayer(place, self.create_mixer(place), None)
                if mixes
                else HalfLayer(place, None, self.create_channels(place))
            )
        mixer, channels = self.create_mixer(place), self.create_channels(place)
        return (SerialLayer if self.config.block == "serial" else ParallelLayer)(place, mixer, channels)

    def create_mixer(self, place: Place) -> Mixer:
        recurrent = self.config.recurrent
        if recurrent is None or not recurrent.layers[place.index]:
            return self.create_attention(place)
        mixer = create_recurrent(place.ops, place.source, f"{place.prefix}.mixer", self.config, self.readers)
        if recurrent.beside is None:
            return mixer
        attention = self.create_attention(place)
        assert isinstance(attention, Attention)
        return Beside(place.ops, attention, mixer, recurrent.beside)

    def create_attention(self, place: Place) -> Mixer:
        at = f"{place.prefix}.self_attn"
        if self.config.latent is not None:
            return LatentAttention(place.ops, place.source, at, self.config, place.rope, self.readers)
        whole, i = self.config, place.index
        return Attention(
            place.ops,
            place.source,
            at,
            place.config,
            place.rope,
            place.local,
            self.readers,
            keeps_kv=whole.keeps_kv(i),
            key_is_value=bool(whole.keys_as_values) and whole.keys_as_values[i],
        )

    def create_channels(self, place: Place) -> ChannelMixer:
        experts = self.config.experts
        if experts is not None and experts.layers[place.index]:
            return Experts(place.ops, place.source, f"{place.prefix}.mlp", place.config, self.readers)
        return create_mlp(place.ops, place.source, f"{place.prefix}.mlp", place.config, self.readers)

    def embedded(self, step: StepBuffers) -> None:
        """What comes between the embedding and the first layer: nothing."""

    # --- a step ---------------------------------------------------------------------------------------------------------------

    def body(self, step: StepBuffers, kv: Sequence[KVLayer]) -> None:
        """Leaves x as it is after the last attention."""
        delta = self.embedding(step)
        if self.media is not None:
            self.media(step)
        self.embedded(step)
        for i, (layer, layer_kv) in enumerate(zip(self.layers, kv, strict=True)):
            layer.attend(step, layer_kv, delta)
            delta = step.delta
            if layer is self.layers[-1]:
                break
            layer.feed(step, delta)
            if self.media is not None:
                self.media.after_layer(i, step)
        self.settle(step)

    def finish(self, step: StepBuffers) -> None:
        """The rest of the last layer, for all rows of step.x."""
        if self.layers[-1].is_split:
            self.layers[-1].feed(step, None)
            self.settle(step)

    def settle(self, step: StepBuffers) -> None:
        """x += delta, where no norm follows that would make it."""
        self.ops.overlay(step.x, step.delta, step.every, step.rows, add=True)

    def head(self, step: StepBuffers) -> None:
        """step.logits of the rows `head_row_idx`. May run several times: it leaves x alone."""
        self.ops.gather_rows(step.x, step.head_row_idx, step.head_x, step.head_rows)
        n = len(step.head_x)
        of_rows = replace(step, x=step.head_x, delta=step.delta[:n], branch=step.branch[:n], rows=step.head_rows)
        self.finish(replace(of_rows, adapters=step.head_adapters))
        self.output(step)

    @property
    def needs_gate_up(self) -> bool:
        """Whether some layer writes step.gate_up."""
        return any(layer.needs_gate_up for layer in self.layers)

    @property
    def weights(self) -> list[Weight]:
        """Every packed matrix, once."""
        r = self.readers
        ends = [self.embedding.weight, *([self.embedding.positions] if self.embedding.positions is not None else [])]
        every = [
            *ends,
            *r.attn_in,
            *r.attn_out,
            *r.mlp_in,
            *r.mlp_out,
            *r.expert_out,
            *r.shared_out,
            *r.mixer_out,
            *r.scan_in,
            *r.scan_low,
            *r.head_in,
        ]
        every += [*r.latent_q_in, *r.latent_q, *r.latent_out]
        return list({id(w): w for w in every}.values())
