"""The patch tokens that leave a model, one for each patch, whether they were pooled or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tpcli.surgery import trace
from tpcli.surgery.trace import Trace


@dataclass
class FinalTokens:
    """What left the final norm in one forward pass, and where each patch went."""

    prefix: int
    trace: Trace
    caught: list[Tensor] = field(default_factory=list)

    def spread(self) -> Tensor:
        """For each patch the token that stands for it: (B, N_0, C)."""
        tokens = self.caught[-1][:, self.prefix :]
        sources = self.trace.sources
        if not sources:
            return tokens
        index = sources[-1].unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        return tokens.gather(1, index)


@contextmanager
def final_tokens(model: nn.Module) -> Iterator[FinalTokens]:
    """Catch the tokens of the one forward pass in the body."""
    norm: nn.Module = model.norm  # type: ignore[assignment]
    with trace(model) as traced:
        found = FinalTokens(int(model.num_prefix_tokens), traced)  # type: ignore[arg-type]

        def catch(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found.caught.append(output)

        hook = norm.register_forward_hook(catch)
        try:
            yield found
        finally:
            hook.remove()
