"""The best weights of a run so far, kept beside those in training."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["BestState"]

_FILE = "best_state.safetensors"


class BestState:
    """A copy of the trainable weights, on the CPU.

    Args:
        net: the network in training. Where all of its weights train, a copy would double the memory, so none is kept.
        keeps: whether copies are wanted.

    Attributes:
        drift: of the kept weights, nats per token; infinite while there are none.
        learned: with them every anchor holds, and not only every answer is reproduced.
    """

    def __init__(self, net: nn.Module, *, keeps: bool) -> None:
        self._net, self._keeps = net, keeps
        self._weights: dict[str, Tensor] = {}
        self.drift, self.learned = float("inf"), False

    def offer(self, drift: float, *, learned: bool = True) -> None:
        """Keep the present weights if their drift is the lowest so far; what is learned goes before what is not."""
        if self._keeps and (not learned, drift) < (not self.learned, self.drift):
            self._weights = {name: weight.detach().cpu().clone() for name, weight in self._trainable()}
            self.drift, self.learned = drift, learned

    @torch.no_grad()
    def exchange(self) -> bool:
        """Put the kept weights in the place of the present ones, and keep these; False where none are kept."""
        for name, weight in self._trainable() if self._weights else ():
            present = weight.detach().cpu().clone()
            weight.copy_(self._weights[name])
            self._weights[name] = present
        return bool(self._weights)

    def save(self, folder: Path) -> None:
        """Write what is kept beside a checkpoint."""
        if self._weights:
            save_file(self._weights, folder / _FILE)

    def load(self, folder: Path, drift: float, *, learned: bool) -> None:
        """Take up what `save` wrote. `drift` and `learned`: as the stop rule's state has them."""
        if (folder / _FILE).exists():
            self._weights, self.drift, self.learned = load_file(folder / _FILE), drift, learned

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, weight) for name, weight in self._net.named_parameters() if weight.requires_grad]
