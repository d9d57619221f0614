"""What training a cell leaves behind."""

from dataclasses import dataclass, field
from typing import Any

from anchorlwf.model.language_model import LanguageModel

__all__ = ["Trained"]


@dataclass
class Trained:
    """A tuned model, what it took, and how it went."""

    model: LanguageModel
    costs: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, float | None]] = field(default_factory=list)

    def add(self, costs: dict[str, Any]) -> None:
        """Sum up the costs of a stream's parts; it converged if every part did."""
        for name, value in costs.items():
            if name == "converged":
                self.costs[name] = value if self.costs.get(name, True) is True else self.costs[name]
            else:
                self.costs[name] = self.costs.get(name, 0) + value
