"""LIFT in a loop of your own: any model that gives logits, plain PyTorch.

    python examples/lift_loop.py --steps 300

A small bidirectional transformer learns to write digits in reverse: `3 1 4 = 4 1 3`. What makes it a masked diffusion
model under LIFT is one call, `lift_ds.lift_loss`; replace `Reverser` by any model that maps ids (B, L) to logits
(B, L, V).
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import lift_ds

DIGITS, EQUALS, MASK, VOCABULARY = 10, 10, 11, 12
LENGTH = 4


class Reverser(nn.Module):
    """Embeddings, a bidirectional transformer, logits."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(torch.randn(2 * LENGTH + 1, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.logits = nn.Linear(width, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits (B, L, V) of ids (B, L)."""
        return self.logits(self.layers(self.tokens(input_ids) + self.positions[: input_ids.shape[1]]))


def draw(batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids (B, L), and which of them are the response."""
    digits = torch.randint(DIGITS, (batch_size, LENGTH), generator=generator)
    ids = torch.cat([digits, torch.full((batch_size, 1), EQUALS), digits.flip(1)], 1)
    return ids, (torch.arange(ids.shape[1]) > LENGTH).expand_as(ids)


def main() -> None:
    """Trains, and shows how much of a response that is wholly masked is predicted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--method", default="lift3", help="lift3, lift2, easy, hard, random, vanilla or gift")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Reverser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, arguments.steps + 1):
        ids, response = draw(64, generator)
        loss = lift_ds.lift_loss(
            model, ids, response, method=arguments.method, mask_token_id=MASK, t_min=0.05, generator=generator
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == arguments.steps:
            ids, response = draw(200, generator)
            with torch.no_grad():
                predicted = model(ids.masked_fill(response, MASK)).argmax(-1)
            right = (predicted == ids)[response].float().mean().item()
            print(f"step {step}: loss {loss.item():.3f}, {right:.1%} of masked digits right", flush=True)


if __name__ == "__main__":
    main()
