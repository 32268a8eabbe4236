"""Muon for hidden matrices, AdamW for the rest, over several workers with a share of every batch each."""

from __future__ import annotations

from collections.abc import Iterable

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
    """Every worker holds all parameters. Each orthogonalises the momentum of its share of the matrices."""

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], rank: int, workers: int, decay: float = 0.02) -> None:
        self._rank, self._workers, self._decay = rank, workers, decay
        self._all = [p for _, p in named]
        self._matrices: list[torch.nn.Parameter] = []
        rest: list[torch.nn.Parameter] = []
        for name, p in named:
            hidden = p.ndim == 2 and not any(part in name for part in ("embed_tokens", "patch_embed", "heads"))
            (self._matrices if hidden else rest).append(p)
        # largest first in turn, so that shares are nearly equal
        self._matrices.sort(key=lambda p: -p.numel() * min(p.shape))
        self._momenta = [torch.zeros_like(p) for p in self._matrices]
        self._adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, rate: float) -> None:
        """One step on the mean of the workers' gradients."""
        self._average()
        torch.nn.utils.clip_grad_norm_(self._all, 1.0)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        updates = [torch.zeros_like(p) for p in self._matrices]
        for i, (p, momentum) in enumerate(zip(self._matrices, self._momenta, strict=True)):
            momentum.mul_(0.95).add_(p.grad)
            if i % self._workers == self._rank:
                # entries as large as those of Adam's steps, so that one rate does for both
                updates[i] = orthogonal(p.grad + 0.95 * momentum) * (0.2 * max(p.shape) ** 0.5)
        self._sum(updates)
        for p, update in zip(self._matrices, updates, strict=True):
            p.data.mul_(1 - rate * self._decay).sub_(update, alpha=rate)
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
