"""The arithmetic that a document needs, and what a device can do in a second.

    forward   2 W L  +  4 L^2 A N  +  2 V D R
    backward  the same again for the inputs of every matrix, 2 * 4 L^2 A N for attention, and as much as the forward for
              each matrix that is trained

W: elements of the layers' matrices (of a mixture, the experts that a token goes to), L tokens, A width of the queries,
N layers, V rows of the head, D width, R rows that reach the head. What is computed twice to save memory (gradient
checkpointing) and the pass that scores tokens are not needed by the update: they do not count. Attention is
bidirectional: every token sees all of its document. A block diffusion model runs every token twice, noised and clean,
which doubles W; both see half of the document on average, so that there are as many pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from lift_ds.models.families import family_of
from lift_ds.models.layer_sizes import adapter_sizes, decoder_layers, is_target, linears_of, used_elements
from lift_ds.models.registry import is_blockwise

PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H200": 989.0,
    "H800": 989.0,
    "GH200": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.0,
}
"""Dense bf16 products by part of the device's name, in 10^12 a second, as the makers state them."""


@dataclass(frozen=True)
class Arithmetic:
    """Sizes of a model, as far as its arithmetic goes.

    Args:
        matrices: Elements of the layers' matrices that a token goes through, adapters left out.
        adapters: Elements of the adapters' matrices.
        num_layers: N.
        query_width: A.
        width: D.
        vocab_size: V.
        trains_all: Whether the matrices themselves are trained, not only the adapters.
    """

    matrices: int
    adapters: int
    num_layers: int
    query_width: int
    width: int
    vocab_size: int
    trains_all: bool

    @staticmethod
    def of(config: PretrainedConfig, lora_rank: int = 0, lora_targets: tuple[str, ...] = ()) -> Arithmetic:
        """Of a config, with adapters of a rank at the matrices of these names; no weights are made.

        Raises:
            ValueError: Attention's width is not known: the layers have no matrix `q_proj`, the config no `head_dim`.
        """
        layers = decoder_layers(config)
        linears = linears_of(layers[0])
        query_width = next((linear.out_features for name, linear in linears if is_target(name, ["q_proj"])), None)
        if query_width is None and hasattr(config, "head_dim"):
            query_width = config.num_attention_heads * config.head_dim
        if query_width is None:
            family = family_of(config).name
            raise ValueError(f"{family}: its layers have no matrix q_proj, so that their arithmetic is not known.")
        copies = 2 if is_blockwise(config) else 1
        return Arithmetic(
            matrices=copies * sum(used_elements(layer, config) for layer in layers),
            adapters=copies * sum(sum(adapter_sizes(layer, lora_rank, lora_targets)) for layer in layers),
            num_layers=len(layers),
            query_width=query_width,
            width=config.hidden_size,
            vocab_size=int(config.embedding_size),
            trains_all=lora_rank == 0,
        )

    @property
    def pair_cost(self) -> float:
        """What the layers compute for a pair of tokens that see each other, where they compute 1 for a token."""
        return 2 * self.query_width * self.num_layers / self.matrices

    def forward(self, length: float, num_rows: float) -> float:
        """Operations of a forward over a document of `length` tokens, `num_rows` of which reach the head."""
        return self.layers(length) + self.head(num_rows)

    def layers(self, length: float) -> float:
        """Operations of a forward through all layers."""
        return 2.0 * (self.matrices + self.adapters) * length + self.attention(length)

    def attention(self, length: float) -> float:
        """Operations of all layers' attention, forward."""
        return 4.0 * length * length * self.query_width * self.num_layers

    def head(self, num_rows: float) -> float:
        """Operations of the head, forward."""
        return 2.0 * self.vocab_size * self.width * num_rows

    def training(self, length: float, num_rows: float) -> float:
        """Operations that the update needs of a document: a forward and a backward."""
        return self.training_of_all(length, length * length, num_rows)

    def training_of_all(self, num_tokens: float, num_pairs: float, num_rows: float) -> float:
        """The same of many documents: L, L^2 and R, each summed over them."""
        linear, attention = 2.0 * (self.matrices + self.adapters) * num_tokens, num_pairs * self.attention(1)
        trained = 2.0 * (self.adapters + self.trains_all * self.matrices) * num_tokens
        return 2.0 * linear + 3.0 * attention + trained + (2.0 + self.trains_all) * self.head(num_rows)


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations a second of a device by its name; `None` where it is not in the table."""
    known = [name for name in PEAK_TFLOPS if name in device_name]
    return PEAK_TFLOPS[max(known, key=len)] * 1e12 if known else None
