"""LLaVA 1.5 and NeXT (arXiv 2310.03744, 2401.13601) and LLaVA-OneVision (arXiv 2408.03326): the rows of a CLIP or SigLIP tower, two
layers that bring them to the decoder's width, and, but for 1.5, lines of tiles with a learnt end."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from sglang.srt.errors import RequestError
from sglang.srt.media_item import MediaItem
from sglang.srt.model.configs.vision_config import VisionConfig
from sglang.srt.model.kernels.ops import Array, Ops, Weight
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.models.vision.layers import BLOCK, Dense, Encoding, blocks
from sglang.srt.model.models.vision.siglip import SiglipTower, check_rows


class Projector:
    """second @ gelu(first @ row)."""

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig, width: int) -> None:
        self.ops, bias, name = ops, config.projector_bias, "multi_modal_projector"
        self.first = Dense(ops, source, {f"{name}.linear_1": config.out_size}, width, bias)
        self.second = Dense(ops, source, {f"{name}.linear_2": config.out_size}, config.out_size, bias)
        self.middle = ops.empty((BLOCK, config.out_size))

    @property
    def weights(self) -> list[Weight]:
        return [*self.first.weights, *self.second.weights]

    def __call__(self, rows: Array, out: Array, count: Array) -> Generator[None]:
        """rows: [n, width]; out: [n, out_size]."""
        for a, b in blocks(rows.shape[0]):
            count[0] = b - a
            self.ops.store(rows[a:b], self.first.input, count)
            yield from self.stored(out[a:b], count)

    def stored(self, out: Array, count: Array) -> Generator[None]:
        """The same for rows that are in the first layer's input."""
        self.first(self.middle, count)
        self.ops.activate(self.middle, self.second.input, count, fn="gelu")
        self.second(out, count)
        yield


class LlavaVision:
    """LLaVA 1.5: an image is one tile."""

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig) -> None:
        self.ops, self.config = ops, config
        places = (config.image_size // config.patch_size) ** 2 + int(config.class_row)
        self.tower = SiglipTower(ops, source, config, "vision_tower", np.arange(places, dtype=np.int32), normed=False)
        self.project = Projector(ops, source, config, config.hidden_size * max(1, len(config.taken_layers)))

    @property
    def weights(self) -> list[Weight]:
        return [*self.tower.weights, *self.project.weights]

    @property
    def tile_rows(self) -> int:
        """What the decoder sees of a tile."""
        return self.tower.tile_len - int(self.config.drops_first)

    def check(self, item: MediaItem) -> None:
        self.tower.check(item)
        check_rows(item, item.grid[0] * self.tile_rows)

    def cost(self, item: MediaItem) -> int:
        return item.shape[0]

    def encode(self, items: Sequence[MediaItem]) -> Encoding:
        rows = yield from self.tower.encode(items)
        found, start = [], 0
        count = self.ops.empty((1,), "int32")
        for item in items:
            n = item.grid[0] * self.tile_rows
            projected = self.ops.empty((n + 1, self.config.out_size))
            for at in range(0, n, self.tile_rows):
                start += self.tower.tile_len
                shown = rows[start - self.tile_rows : start]
                yield from self.project(shown, projected[at : at + self.tile_rows], count)
            found.append(self.place(item, projected, count))
        return found

    def place(self, item: MediaItem, projected: Array, count: Array) -> Array:
        """An item's rows, of those of its tiles; the last of `projected` is free."""
        return projected[:-1]


class TiledLlavaVision(LlavaVision):
    """LLaVA-NeXT and OneVision. Which of the projected rows become which rows of the decoder, where the image's tiles join, its
    margins are cut and it is resampled, the server has worked out: `facts` hold index and weight of each row's four sources. The
    source after the last is the learnt line end."""

    def __init__(self, ops: Ops, source: WeightSource, config: VisionConfig) -> None:
        super().__init__(ops, source, config)
        self.line_end = ops.array(source.vector("image_newline"))

    def check(self, item: MediaItem) -> None:
        self.tower.check(item)
        index, weight = item.facts.get("index"), item.facts.get("weight")
        size = 16 * item.num_rows
        if not isinstance(index, bytes) or not isinstance(weight, bytes) or len(index) != size or len(weight) != size:
            raise RequestError(f"the {item.kind}'s rows are not told for each of its {item.num_rows} ids")
        at = np.frombuffer(index, np.int32)
        if at.min() < 0 or at.max() > item.grid[0] * self.tile_rows:
            raise RequestError(f"the {item.kind}'s rows lie outside its tiles")

    def place(self, item: MediaItem, projected: Array, count: Array) -> Array:
        projected[-1] = self.line_end
        out = self.ops.empty((item.num_rows, self.config.out_size))
        count[0] = item.num_rows
        index = np.frombuffer(item.facts["index"], np.int32).reshape(-1, 4)
        weight = np.frombuffer(item.facts["weight"], np.float32).reshape(-1, 4)
        self.ops.blend_rows(projected, self.ops.array(index), self.ops.array(weight), out, count)
        return out
