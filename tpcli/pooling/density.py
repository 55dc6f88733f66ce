"""DPC-KNN: clustering by density peaks (Du et al., 2016), as TCFormer (Zeng et al., 2022) pools."""

from __future__ import annotations

import torch
from torch import Tensor

from .distances import pairwise_squared_distances
from .registry import Assignment, implement
from .ties import highest, lowest


def dpc_knn(z: Tensor, k: int, *, neighbours: int = 5) -> Assignment:
    """Tokens in dense places far from denser ones are centres; the others join the nearest centre.

    Density rho_i = exp(-1/k sum over the k nearest neighbours j of ||z_i - z_j||^2)
    (TCFormer); indicator delta_i = distance to the nearest denser token, or, for the densest, to
    the farthest token; the K tokens of largest rho_i delta_i are centres. Distances are divided
    by sqrt(D): in the hundreds of channels of a ViT the exponential would be zero otherwise.
    Of two equally dense tokens the first one counts as denser.

    z: (B, N, D).
    """
    n, channels = z.shape[1:]
    squared = pairwise_squared_distances(z) / channels  # (B, N, N)
    distance = squared.sqrt()
    position = torch.arange(n, device=z.device)
    itself = position.unsqueeze(1) == position

    near = squared.masked_fill(itself, torch.inf).sort(-1).values[:, :, : min(neighbours, n - 1)]
    density = (-near.mean(-1)).exp()  # (B, N)

    mine, other = density.unsqueeze(2), density.unsqueeze(1)
    denser = (other > mine) | ((other == mine) & (position < position.unsqueeze(1)))
    to_denser = distance.masked_fill(~denser, torch.inf).amin(-1)
    to_denser = torch.where(denser.any(-1), to_denser, distance.amax(-1))

    centres = highest(density * to_denser, k)
    _, nearest = lowest(squared.masked_fill(~centres.unsqueeze(1), torch.inf))
    return Assignment(torch.where(centres, position, nearest), centres)


implement("dpc-knn", dpc_knn)
