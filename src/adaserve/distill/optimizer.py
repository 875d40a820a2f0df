"""The optimizer of a draft, its schedule, and its state as plain tensors, so that a checkpoint holds nothing executable."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adaserve.distill.recipe import Recipe

WARM_UP = 0.02


class Optimizer:
    """Steps the named parameters of a draft: matrices by Muon or AdamW, norms and biases by AdamW."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> None:
        self._parameters = dict(parameters)
        matrices = {name: p for name, p in parameters.items() if p.dim() == 2 and recipe.optimizer == "muon"}
        others = [p for name, p in parameters.items() if name not in matrices]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            # An update of AdamW's size, so that one learning rate serves both.
            self._parts.append(
                torch.optim.Muon(list(matrices.values()), lr=recipe.rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            )
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0))

    def step(self, rate: float, clip: float = 1.0) -> None:
        """Apply the gradients, their norm clipped, and drop them."""
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), clip)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on besides weights, by `parameter/what`."""
        found: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            for part in self._parts:
                for what, value in part.state.get(parameter, {}).items():
                    found[f"{name}/{what}"] = torch.as_tensor(value).detach().clone().cpu()
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        owner = {id(p): part for part in self._parts for group in part.param_groups for p in group["params"]}
        for key, value in state.items():
            name, _, what = key.partition("/")
            parameter = self._parameters[name]
            # Step counters stay on the CPU, where AdamW keeps them.
            owner[id(parameter)].state[parameter][what] = value if value.dim() == 0 else value.to(parameter.device)


def rate_at(progress: float, peak: float) -> float:
    """The learning rate after a share of the way, 0 to 1: a short rise, then half a cosine down to zero."""
    if progress < WARM_UP:
        return peak * (progress + 1e-3) / (WARM_UP + 1e-3)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))
