"""The training data of toy-vlm: lessons, and their conversion to arrays in batches.

A lesson is one or two pictures and many short conversations about them. All of them share the tokens of the pictures, as the
branches of a tree share its trunk: a branch sees the trunk and itself, with the positions that it would have without the others.
So a picture is encoded once and asked about eight times, and every answer is still the first one after its picture.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from .pictures import COLORS, SHAPES, Scene, group, pair, questions, questions_about_two, scene, several, single, words_only

IGNORED = -100
Turns = tuple[tuple[str, str], ...]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Lesson:
    """Pictures and conversations about them, none of which knows of the others."""

    scenes: tuple[Scene, ...]
    talks: tuple[Turns, ...]
    image_first: bool = True


def lesson(rng: random.Random) -> Lesson:
    """Tests ask all kinds of questions as well, but here those that compare are as frequent as those that describe."""
    kind = rng.random()
    if kind < 0.04:
        return Lesson((), tuple(words_only(rng).turns for _ in range(8)))
    if kind < 0.5:
        s = rng.choice((scene, single, pair, several))(rng)
        return _about(rng, (s,), [turn for _ in range(3) for turn in questions(rng, s)], rng.random() < 0.7)
    a, b = _two_scenes(rng)
    return _about(rng, (a, b), questions_about_two(rng, a, b), rng.random() < 0.8)


def _two_scenes(rng: random.Random) -> tuple[Scene, Scene]:
    kind = rng.choice(("any", "more", "shapes", "shapes", "shapes"))
    if kind == "any":
        return scene(rng), scene(rng)
    a, b = single(rng), group(rng) if kind == "more" else single(rng)
    alike = rng.choice(("shape", "color", "", ""))
    while kind == "shapes" and alike and getattr(a.things[0], alike) != getattr(b.things[0], alike):
        b = single(rng)
    return (a, b) if rng.random() < 0.5 else (b, a)


def _about(rng: random.Random, scenes: tuple[Scene, ...], asked: list[tuple[str, str]], image_first: bool) -> Lesson:
    """Each question once; some as the second of a conversation. Where pictures come last, nothing is shared: fewer questions."""
    turns = list(dict(asked).items())
    rng.shuffle(turns)
    talks: list[Turns] = []
    while turns:
        talks.append(tuple(turns.pop() for _ in range(2 if len(turns) > 1 and rng.random() < 0.15 else 1)))
    return Lesson(scenes, tuple(talks[: 9 if image_first else 4]), image_first)


# --- sequences --------------------------------------------------------------------------------------------------------------


class Tree:
    """Tokens of a lesson: ids, labels (answers only), positions, the encoder's row for each token of a picture, and the branch
    (0: the trunk)."""

    def __init__(self) -> None:
        self.columns: list[tuple[int, int, int, int, int, int, int]] = []
        self.branch, self.position = 0, 0

    def add(self, ids: list[int], answer: bool = False) -> None:
        for i in ids:
            p = self.position
            self.columns.append((i, i if answer else IGNORED, p, p, p, -1, self.branch))
            self.position += 1

    def add_picture(self, pad: int, first_row: int, down: int, across: int) -> None:
        p = self.position
        for i in range(down * across):
            self.columns.append((pad, IGNORED, p, p + i // across, p + i % across, first_row + i, self.branch))
        self.position += max(down, across)


class Planter:
    """Makes batches of lessons."""

    def __init__(self, tokenizer: Tokenizer, processor: Qwen2VLImageProcessorPil, length: int = 208) -> None:
        self._tokenizer, self._processor, self._length = tokenizer, processor, length
        self._start, self._end, self._open, self._close, self._pad = (
            tokenizer.token_to_id(f"<|{name}|>") for name in ("im_start", "im_end", "vision_start", "vision_end", "image_pad")
        )

    def _text(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def _tree(self, told: Lesson, pictures: list[tuple[int, int, int]]) -> Tree:
        tree, newline = Tree(), self._text("\n")
        user, assistant = ([self._start, *self._text(f"{role}\n")] for role in ("user", "assistant"))

        def show() -> None:
            for place in pictures:
                tree.add([self._open])
                tree.add_picture(self._pad, *place)
                tree.add([self._close])

        tree.add([self._start, *self._text("system\nYou are a helpful assistant."), self._end, *newline, *user])
        if told.image_first:
            show()
        trunk = tree.position
        for tree.branch, talk in enumerate(told.talks, 1):
            tree.position, size = trunk, len(tree.columns)
            for i, (question, answer) in enumerate(talk):
                tree.add([*newline, *user] * (i > 0) + self._text(question))
                if i == 0 and not told.image_first:
                    show()
                tree.add([self._end, *newline, *assistant])
                tree.add([*self._text(answer), self._end], answer=True)
            if len(tree.columns) > self._length:
                del tree.columns[size:]
        return tree

    def __call__(self, lessons: list[Lesson]) -> dict[str, torch.Tensor]:
        see = Seen(self._processor, [s for told in lessons for s in told.scenes])
        places, trees = iter(see.places), []
        for told in lessons:
            trees.append(self._tree(told, [next(places) for _ in told.scenes]).columns)
        rows = pack([np.array(columns) for columns in trees], self._length)
        longest = max(map(len, rows))
        table = np.stack([np.pad(row, ((0, longest - len(row)), (0, 0)), constant_values=-1) for row in rows])
        ids, labels, row, branch, tree = (table[..., i] for i in (0, 1, 5, 6, 7))
        labels[ids < 0], ids[ids < 0] = IGNORED, 0
        same = tree[:, :, None] == tree[:, None, :]
        sees = same & ((branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :]))
        arrays = {
            "ids": ids,
            "labels": labels,
            "positions": np.moveaxis(table[..., 2:5], -1, 0).clip(0),
            "row": row,
            "sees": (sees & np.tri(longest, dtype=bool))[:, None],
        }
        return see.arrays | {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


def pack(trees: list[Array], length: int) -> list[Array]:
    """Trees side by side in rows of about `length`, the largest first; a last column tells them apart."""
    rows: list[list[Array]] = []
    for number, tree in sorted(enumerate(trees), key=lambda item: -len(item[1])):
        tree = np.pad(tree, ((0, 0), (0, 1)), constant_values=number)
        free = [row for row in rows if sum(map(len, row)) + len(tree) <= length]
        if free:
            free[0].append(tree)
        else:
            rows.append([tree])
    return [np.concatenate(row) for row in rows]


# --- what there is to see ---------------------------------------------------------------------------------------------------

KINDS = (*SHAPES, *(str(i) for i in range(10)))
ROLES = (
    "center",
    "top left",
    "top right",
    "bottom left",
    "bottom right",
    "left",
    "right",
    "upper",
    "lower",
    *"2345",
    "digit",
    "several",
)
WORDS = (KINDS, tuple(COLORS))
CLASSES = (1, 1, 2, len(ROLES) + 1)


class Seen:
    """Pictures as the encoder gets them, with what each of the rows that it makes of them should tell (see `what_is_where`).
    `places` has the first row, rows down and rows across of every picture."""

    def __init__(self, processor: Qwen2VLImageProcessorPil, scenes: list[Scene]) -> None:
        self.places: list[tuple[int, int, int]] = []
        self.arrays: dict[str, torch.Tensor] = {}
        found = [processor(images=s.image, return_tensors="np") for s in scenes]
        first, seen = 0, []
        for s, f in zip(scenes, found, strict=True):
            down, across = (int(n) // 2 for n in f["image_grid_thw"][0, 1:])
            self.places.append((first, down, across))
            seen.append(what_is_where(s, down, across))
            first += down * across
        if scenes:
            self.arrays["pixels"] = torch.from_numpy(np.concatenate([f["pixel_values"] for f in found]).astype(np.float32))
            self.arrays["grids"] = torch.from_numpy(np.concatenate([f["image_grid_thw"] for f in found]))
            self.arrays["seen"] = torch.from_numpy(np.concatenate(seen))


def role(s: Scene, i: int) -> str:
    """Which part thing i has in its picture: its place, or how many there are."""
    if s.kind == "single":
        return s.facts["place"]
    if s.kind == "group":
        return str(len(s.things))
    if s.kind == "pair":
        return (("upper", "lower") if s.facts["relation"] == "above" else ("left", "right"))[i]
    return s.kind


def what_is_where(s: Scene, down: int, across: int) -> Array:
    """For each of down x across cells of a picture: kind and colour of the thing there (0: none), whether its centre is there,
    and its role."""
    labels = np.zeros((down, across, 4), np.int64)
    for i, t in enumerate(s.things):
        kind = s.facts["value"] if t.shape == "digit" else t.shape
        x, y = t.x / s.image.width * across, t.y / s.image.height * down
        reach_x, reach_y = t.r / s.image.width * across, t.r / s.image.height * down
        if t.shape == "digit":
            reach_x *= 0.6
        for row in range(down):
            for column in range(across):
                overlap_x = min(column + 1, x + reach_x) - max(column, x - reach_x)
                overlap_y = min(row + 1, y + reach_y) - max(row, y - reach_y)
                if overlap_x > 0.2 and overlap_y > 0.2:
                    labels[row, column, :2] = KINDS.index(kind) + 1, list(COLORS).index(t.color) + 1
                    labels[row, column, 3] = ROLES.index(role(s, i)) + 1
        labels[min(int(y), down - 1), min(int(x), across - 1), 2] = 1
    return labels.reshape(-1, 4)
