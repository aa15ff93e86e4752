"""What passes hold, against arithmetic and against autograd's own saved tensors."""

import pytest
import torch
from torch import nn

from lift_ds.models.layers import RMSNorm
from lift_ds.models.llada import LLaDAConfig
from lift_ds.models.settings import LoraConfig
from lift_ds.planning.live_memory import FlashLike, LiveBytes, hollow_with_adapters, measure_model, measure_passes

B, L, D, F, V = 2, 64, 128, 384, 512
CONFIG = LLaDAConfig(
    d_model=D, n_layers=5, n_heads=4, mlp_hidden_size=F, vocab_size=V, mask_token_id=0, eos_token_id=1, pad_token_id=1
)
NO_LORA = LoraConfig()


def passes(config=CONFIG, lora=NO_LORA, dtype=torch.float32, num_checkpointed=0, rows=B * L):
    return measure_passes(config, lora, dtype, num_checkpointed, B, L, rows, "cpu")


def test_storages_count_until_they_are_freed():
    """Two matrices of 40 bytes, one freed before a third of 80 is made: 40 + 40, then 40 + 80 at most."""
    with LiveBytes() as live:
        first, second = torch.zeros(10), torch.zeros(10)
        view = second[2:]
        assert live.now == 80
        del first
        third = torch.zeros(20)
        assert (live.now, live.peak) == (120, 120)
        del second, third
        assert live.now == 40 and view.shape == (8,)


def saved_bytes(model, device):
    """Distinct storages that autograd saves, parameters left out."""
    own = {each.untyped_storage()._cdata for each in model.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.encode(torch.zeros(B, L, dtype=torch.long, device=device))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_a_real_layer_saves_what_is_estimated():
    """The second layer's share: both models on the CPU, with torch's own attention; the bytes are the same."""
    one, two = (
        saved_bytes(hollow_with_adapters(CONFIG, count, torch.float32, NO_LORA).to_empty(device="cpu"), "cpu")
        for count in (1, 2)
    )
    a_layer_less = LLaDAConfig(**{**CONFIG.to_dict(), "n_layers": 4})
    assert passes().saved - passes(a_layer_less).saved == two - one > 10 * B * L * D * 4


def test_checkpointing_keeps_a_layers_input_alone():
    """(B, L, D) in float32 a layer: 2 * 64 * 128 * 4 bytes."""
    a_layer_less = LLaDAConfig(**{**CONFIG.to_dict(), "n_layers": 4})
    kept = passes(num_checkpointed=5).saved - passes(a_layer_less, num_checkpointed=4).saved
    assert kept == B * L * D * 4
    assert passes(num_checkpointed=5).training < passes().training


@pytest.mark.parametrize("num_checkpointed", [0, 1, 2, 4, 5])
def test_some_checkpointed_layers_are_what_a_whole_model_shows(num_checkpointed):
    """All five layers on the meta device, in place of one and two and a share."""
    whole = measure_model(hollow_with_adapters(CONFIG, 5, torch.float32, NO_LORA), num_checkpointed, B, L, B * L, "cpu")
    held = passes(num_checkpointed=num_checkpointed)
    assert (held.saved, held.head, held.backward) == whole[:3]


def test_the_head_holds_a_chunk_and_its_gradients():
    """Float32: logits R V, the gradient of the matrix V D, of the rows R D, and the losses and slopes of rows."""
    rows = B * L
    exact = 4 * (rows * V + V * D + rows * D)
    assert exact < passes().head < 1.1 * exact
    assert passes(rows=rows // 2).head < passes().head


def test_adapters_leave_the_head_no_gradient_and_save_their_masks():
    lora = LoraConfig(rank=8, dropout=0.5)
    held = passes(lora=lora)
    assert held.head < passes().head - 4 * V * D // 2
    without = passes(lora=LoraConfig(rank=8, dropout=0.0))
    # masks (1 byte) and masked features (4) of q, k and v in 5 layers; without dropout one input (4) serves all three
    assert held.saved - without.saved == 5 * (3 * (1 + 4) - 4) * B * L * D


def test_attention_keeps_five_tensors():
    query = torch.zeros(B, 4, L, 32, device="meta", requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.nbytes) or each, lambda each: each):
        FlashLike.apply(query, query, query)
    assert kept == [B * 4 * L * 32 * 4] * 4 + [B * 4 * L * 4]


def test_nothing_is_counted_twice_where_a_cast_does_nothing():
    """`RMSNorm` keeps its input, which is there already, and 1 / rms of each row; what it cast it lets go."""
    norm = RMSNorm(D, 1e-5).to("meta")
    hidden = torch.zeros(B, L, D, device="meta", requires_grad=True)
    live = LiveBytes()
    live.know([hidden, *norm.parameters()])
    with live:
        out = norm(hidden)
        assert isinstance(norm, nn.Module)
        row = B * L * 4
        assert live.now == out.nbytes + row  # what it gives, 1 / rms
