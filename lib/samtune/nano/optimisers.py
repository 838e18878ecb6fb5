"""Optimisers of the nano SAM's pre-training, and the averaging of gradients over processes."""

import torch
from torch import Tensor, distributed, nn

from samtune.sam.build import Sam


class Muon(torch.optim.Optimizer):
    """SGD momentum, orthogonalised by Newton-Schulz iterations, for matrices, in float32 (Jordan et al. 2024).

    torch.optim.Muon computes in bfloat16, which is fifty times slower on a CPU without bfloat16 instructions. The
    update is scaled to the size of an AdamW step, so that both can use one learning rate.
    """

    def __init__(self, params: list, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalise(parameter.grad.lerp(buffer, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-0.2 * group["lr"] * max(parameter.shape) ** 0.5)


def orthogonalise(matrix: Tensor) -> Tensor:
    """About the nearest (semi-)orthogonal matrix: five quintic Newton-Schulz iterations with Muon's coefficients."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def optimisers(sam: Sam, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices in the transformers, AdamW for all else; prompt encoder and mask decoder learn at half the
    rate.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in sam.named_parameters():
        encoder = name.startswith("image_encoder.")
        inside = "blocks." in name or "transformer." in name
        groups.setdefault((inside and parameter.ndim == 2, encoder), []).append(parameter)

    def group(matrix: bool) -> list[dict]:
        parts = [(True, 1.0), (False, 0.5)]
        return [{"params": groups[matrix, encoder], "scale": scale} for encoder, scale in parts]

    return [
        Muon(group(True), lr=1e-3, weight_decay=weight_decay),
        torch.optim.AdamW(group(False), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def rank_and_processes() -> tuple[int, int]:
    """This process's number, and how many there are; (0, 1) outside torchrun."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def average_gradients(parameters: list[nn.Parameter], processes: int) -> None:
    """Replace every gradient by its mean over the processes; a missing one counts as zero."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    distributed.all_reduce(flat)
    flat /= processes
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(gradient.view_as(parameter))
