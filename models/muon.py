"""Muon with RMS-matched updates for matrices, Adam for everything else; work is shared between data-parallel ranks."""

import math
from collections import defaultdict

import torch
import torch.distributed as dist

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(g, rounds=5, precision=torch.float32):
    """The nearest semi-orthogonal matrices of a stack [n, rows, columns], approximately (quintic Newton-Schulz)."""
    a, b, c = NEWTON_SCHULZ
    x = (g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(precision)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Muon on `matrices` (any tensor, flattened to [first axis, rest]) and Adam on `others`.

    `precision` is that of the products of orthogonalisation; bfloat16 is enough.

    With several ranks each orthogonalises a share of the matrices; gradients must already be equal on all ranks.
    """

    def __init__(self, matrices, others, momentum=0.95, betas=(0.9, 0.98), rank=0, ranks=1, precision=torch.float32):
        by_shape = defaultdict(list)
        for parameter in matrices:
            by_shape[(parameter.shape[0], parameter.numel() // parameter.shape[0])].append(parameter)
        self.groups = list(by_shape.items())
        self.momenta = [torch.zeros(len(members), *shape) for shape, members in self.groups]
        self.momentum, self.rank, self.ranks, self.precision = momentum, rank, ranks, precision
        self.adam = torch.optim.Adam(others, betas=betas, foreach=True)

    def parameters(self):
        """All parameters this optimiser moves."""
        return [p for _, members in self.groups for p in members] + self.adam.param_groups[0]["params"]

    @torch.no_grad()
    def step(self, rate):
        """One update at learning rate `rate`."""
        updates = []
        for (shape, members), momentum in zip(self.groups, self.momenta, strict=True):
            gradient = torch.stack([p.grad.reshape(shape) for p in members])
            momentum.lerp_(gradient, 1 - self.momentum)
            update = torch.zeros_like(gradient)
            share = slice(self.rank, None, self.ranks)
            update[share] = orthogonalised(gradient[share].lerp(momentum[share], self.momentum), precision=self.precision) * (0.2 * math.sqrt(max(shape)))
            updates.append(update)
        if self.ranks > 1:
            flat = torch.cat([update.flatten() for update in updates])
            dist.all_reduce(flat)
            updates = [part.view_as(update) for part, update in
                       zip(flat.split([update.numel() for update in updates]), updates, strict=True)]
        for (_, members), update in zip(self.groups, updates, strict=True):
            for parameter, change in zip(members, update, strict=True):
                parameter.add_(change.view_as(parameter), alpha=-rate)
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()

    def state_dict(self):
        """Everything needed to go on as if never stopped."""
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def load_state_dict(self, state):
        """The inverse of `state_dict`, for the same parameters in the same order."""
        for mine, saved in zip(self.momenta, state["momenta"], strict=True):
            mine.copy_(saved)
        self.adam.load_state_dict(state["adam"])
