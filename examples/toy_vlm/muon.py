"""Muon for hidden matrices and AdamW for the rest (embeddings, classifiers, vectors), over workers that each have a share of
every batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def orthogonal(g: torch.Tensor) -> torch.Tensor:
    """Nearly the orthogonal matrix closest to `g`: five Newton-Schulz steps push all its singular values towards 1."""
    x = g.bfloat16() if g.shape[0] <= g.shape[1] else g.bfloat16().T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return (x if g.shape[0] <= g.shape[1] else x.T).float()


class Optimizer:
    """Every worker holds all parameters. Each orthogonalizes the momentum of its share of the matrices."""

    def __init__(self, parts: list[tuple[torch.nn.Module, float]], rank: int, workers: int, decay: float = 0.02) -> None:
        """Each part learns at its share of the rate."""
        self._rank, self._workers, self._decay = rank, workers, decay
        self._all: list[torch.nn.Parameter] = []
        self._matrices: list[tuple[torch.nn.Parameter, torch.Tensor, float]] = []
        rest: list[dict[str, Any]] = []
        for part, share in parts:
            rest.append({"params": [], "share": share})
            for name, p in part.named_parameters():
                self._all.append(p)
                if p.ndim == 2 and min(p.shape) > 32 and "embed_tokens" not in name:
                    self._matrices.append((p, torch.zeros_like(p), share))
                else:
                    rest[-1]["params"].append(p)
        # largest first in turn, so that the workers' shares are nearly equal
        self._matrices.sort(key=lambda entry: -entry[0].numel() * min(entry[0].shape))
        self._adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, rate: float) -> None:
        """One step on the mean of the workers' gradients."""
        self._average()
        torch.nn.utils.clip_grad_norm_(self._all, 1.0)
        for group in self._adam.param_groups:
            group["lr"] = rate * group["share"]
        self._adam.step()
        updates = [torch.zeros_like(p) for p, _, _ in self._matrices]
        for i, (p, momentum, _) in enumerate(self._matrices):
            momentum.mul_(0.95).add_(p.grad)
            if i % self._workers == self._rank:
                # entries as large as those of Adam's steps, so that one rate does for both
                updates[i] = orthogonal(p.grad + 0.95 * momentum) * (0.2 * max(p.shape) ** 0.5)
        self._sum(updates)
        for (p, _, share), update in zip(self._matrices, updates, strict=True):
            p.data.mul_(1 - rate * share * self._decay).sub_(update, alpha=rate * share)
        for p in self._all:
            p.grad = None

    def _average(self) -> None:
        """A worker whose share did not use a parameter counts as zero."""
        for p in self._all:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad / self._workers
        self._sum([p.grad for p in self._all])

    def _sum(self, tensors: list[torch.Tensor]) -> None:
        if self._workers == 1:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(part.view_as(t))
