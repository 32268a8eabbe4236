"""Tiny random vision-language models, saved by transformers, and requests with pictures for a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang.srt.forward_batch import EmbedRows, ForwardBatch, StateRows
from sglang.srt.media_item import EncodeJob, MediaItem
from sglang.srt.model.worker import LocalWorker
from sglang.srt.server.multimodal.spans import axis_positions
from tests.model.tiny import SIZES

IMAGE, VIDEO, START, END = 190, 191, 192, 193
TEXT = {**SIZES, "max_position_embeddings": 512}


def randomize(model: Any, seed: int) -> Any:
    """Random weights large enough that logits differ by whole numbers; norms and biases not at their neutral values."""
    import torch

    torch.manual_seed(seed)
    model = model.float().eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                gain = 0.3 if "patch_embed" in name else 1.0
                parameter.copy_(torch.randn_like(parameter) * gain * parameter[0].numel() ** -0.5)
    return model


def save_qwen(folder: Path, family: str, seed: int = 0, **text_changes: Any) -> Any:
    """A Qwen2-VL or Qwen2.5-VL in `folder`; returns the transformers model."""
    import transformers

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = TEXT | {"rope_parameters": rope, "tie_word_embeddings": False} | text_changes
    vision: dict[str, Any] = {"depth": 3, "num_heads": 4, "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2}
    if family == "Qwen2_5_VL":
        vision |= {"hidden_size": 64, "intermediate_size": 80, "out_hidden_size": 64, "window_size": 56}
        vision |= {"fullatt_block_indexes": [1], "tokens_per_second": 3}
    else:
        vision |= {"embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2, "hidden_act": "quick_gelu"}
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision, **ids)
    model = randomize(getattr(transformers, f"{family}ForConditionalGeneration")(config), seed)
    model.save_pretrained(folder)
    return model


@dataclass
class Shown:
    """A prompt with pictures. `grids`: (frames, down, across) in patches, one for each, in order; `kinds` alike."""

    ids: list[int]
    items: tuple[MediaItem, ...]
    positions: Any
    delta: int
    bidirectional_images: bool = False


def show(rng: np.random.Generator, parts: Sequence[Any], time_step: float = 1.5, merge: int = 2) -> Shown:
    """A prompt of text (lists of ids) and pictures (grids; more than one frame makes a video)."""
    ids: list[int] = []
    items: list[MediaItem] = []
    spans = []
    for part in parts:
        if isinstance(part, list):
            ids += part
            continue
        t, h, w = part
        rows = t * h * w // merge**2
        pixels = rng.standard_normal((t * h * w, 3 * 2 * 14 * 14)).astype(np.float32)
        ids.append(START)
        kind = "video" if t > 1 else "image"
        name = rng.bytes(16)
        items.append(MediaItem(kind, name, ((len(ids), rows),), pixels.tobytes(), pixels.shape, (t, h, w)))
        spans.append(((len(ids), rows), (t, h // merge, w // merge), time_step if t > 1 else 1.0))
        ids += [VIDEO if t > 1 else IMAGE] * rows + [END]
    positions, delta = axis_positions(len(ids), spans)
    return Shown(ids, tuple(items), positions, delta)


def embed(worker: LocalWorker, items: Sequence[MediaItem]) -> dict[bytes, EncodeJob]:
    """Embeddings of all items, encoded together."""
    jobs = {item.mm_hash: worker.encode(item) for item in items}
    while not all(job.is_done for job in jobs.values()):
        assert worker.encode_some(0.0)
    return jobs


def logits(worker: LocalWorker, shown: Shown, chunk: int = 10**6, row: int = 0, last: bool = False) -> np.ndarray[Any, Any]:
    """Logits of every position of a prompt, computed in chunks, in slots of its own (row r of the table). `last`: of the last chunk
    alone, so that no step waits for the one before."""
    info = worker.info
    table = np.zeros((info.max_running_requests, info.context_len), np.int32)
    table[:] = np.arange(info.context_len) + np.arange(len(table))[:, None] * info.context_len % info.max_total_tokens
    worker.bind(table)
    jobs = embed(worker, shown.items)
    found = []
    for start in range(0, len(shown.ids), chunk):
        end = min(start + chunk, len(shown.ids))
        batch = batch_of(shown, jobs, start, end, table, row)
        worker.forward(batch)
        if last and end < len(shown.ids):
            continue
        runner = worker._runner
        assert runner is not None
        rows = np.arange(end - start, dtype=np.int32)
        block = runner.limits.max_logit_rows
        for i in range(0, len(rows), block):
            part = runner.head(rows[i : i + block])
            runner._ops.finish()
            found.append(part.copy())
    return np.concatenate(found)


def batch_of(shown: Shown, jobs: dict[bytes, EncodeJob], start: int, end: int, table: Any, row: int) -> ForwardBatch:
    embeds = []
    for item in shown.items:
        done = 0
        for offset, length in item.spans:
            low, high = max(start, offset), min(end, offset + length)
            if low < high:
                embedding = jobs[item.mm_hash].embedding
                embeds.append(EmbedRows(low - start, high - low, embedding, done + low - offset))
            done += length

    def ints(values: Any) -> Any:
        return np.array(values, np.int32)

    return ForwardBatch(
        ints(shown.ids[start:end]),
        np.arange(start, end, dtype=np.int32),
        table[row, start:end],
        ints([row]),
        ints([0]),
        ints([end - start]),
        ints([end]),
        ints([]),
        [],
        embeds=embeds,
        row_ends=row_ends_of(shown, start, end) if shown.bidirectional_images else None,
        rope_positions=None if shown.positions is None else shown.positions[:, start:end],
        states=StateRows(ints([row if start else -1]), ints([row]), ints([0, 0]), ints([]), ints([])),
    )


def row_ends_of(shown: Shown, start: int, end: int) -> Any:
    ends = np.arange(start + 1, end + 1, dtype=np.int32)
    for item in shown.items:
        for offset, length in item.spans:
            assert not offset < start < offset + length and not offset < end < offset + length
            ends[max(offset - start, 0) : max(offset + length - start, 0)] = offset + length
    return ends
