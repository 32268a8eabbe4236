"""The columns of logits that a step needs: where grammars leave little choice, masked logits are skipped.

After `"age":` only a few dozen tokens are allowed, so the head need not compute the others: it is computed in blocks of BLOCK
columns, and the rows whose masks need few blocks get the union of these. What is not computed is masked.

    samples    0 wide   1 narrow   2 wide   3 narrow           masks, or none
    rows       0, 2 whole | 1, 3 in the blocks that 1 or 3 may sample from
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang.srt.forward_batch import Int32Array, VocabMasks

BLOCK = 16
"""columns of the head that are computed together"""
NARROW_SHARE = 16
"""A row is narrow if its mask touches at most one block in so many."""


@dataclass(frozen=True)
class NeededColumns:
    """Row i of the logits is that of sample `order[i]`. The first `whole` rows are computed in all columns, those after them in
    `blocks`."""

    order: Int32Array
    whole: int
    blocks: Int32Array


def needed_columns(masks: VocabMasks | None, num_samples: int, vocab_size: int, keep_order: bool) -> NeededColumns | None:
    """None where all of all rows is needed. With `keep_order` rows are in the order of the samples."""
    if masks is None or not len(masks.rows):
        return None
    touched = masks.bits.view("<u2")[:, : -(-vocab_size // BLOCK)] != 0
    is_narrow = np.count_nonzero(touched, axis=1) * NARROW_SHARE <= touched.shape[1]
    wide = np.ones(num_samples, np.bool_)
    wide[masks.rows[is_narrow]] = False
    order = np.arange(num_samples, dtype=np.int32)
    if keep_order:
        whole = int(np.flatnonzero(wide).max(initial=-1)) + 1
    else:
        whole = int(np.count_nonzero(wide))
        order = np.concatenate([order[wide], order[~wide]])
    if whole == num_samples:
        return None
    return NeededColumns(order, whole, np.flatnonzero(touched[is_narrow].any(axis=0)).astype(np.int32))


def reorder(masks: VocabMasks, order: Int32Array) -> VocabMasks:
    """The same masks where sample `order[i]` is row i."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order), dtype=np.int32)
    return VocabMasks(place[masks.rows], masks.bits)
