"""Two real ranks on gloo: same losses under every ZeRO stage, same gradient however a step is cut."""

import json
import statistics

import pytest
import torch
from safetensors.torch import load_file, save_file

from lift_ds import load_pretrained
from lift_ds.data.batch import collate
from lift_ds.models.families import read_config
from lift_ds.models.weights import NewWeights
from lift_ds.training.normalizer import document_scale, step_counts
from lift_ds.training.step import DiffusionStep
from tests.conftest import REPOSITORY, VECTORS, launch_job, run_script
from tests.distributed.gathering import NUM_LAYERS
from tests.distributed.jobs import LIFT3, THRESHOLDS, make_documents
from tests.models.block_vectors import GIVEN, complete_folder
from tests.small_models import write_adapted

pytestmark = pytest.mark.distributed

LAYER_8B = 221_249_536  # elements of a layer of LLaDA-8B with adapters of rank 128, see tests/config/test_config.py


def write_stages(place):
    """DeepSpeed's JSON without ZeRO, with all thresholds at 0 and as shipped: three files."""
    shipped = json.loads((REPOSITORY / "ds_configs" / "zero3.json").read_text()) | {"bf16": {"enabled": False}}
    zero = shipped["zero_optimization"]
    configs = {
        "zero0": shipped | {"zero_optimization": {"stage": 0}},
        "thresholds0": shipped | {"zero_optimization": zero | dict.fromkeys(THRESHOLDS, 0)},
        "shipped": shipped,
    }
    paths = []
    for name, config in configs.items():
        paths.append(place / f"{name}.json")
        paths[-1].write_text(json.dumps(config))
    return paths


def test_wildly_different_ranks_agree_with_zero_0(tmp_path):
    """50 LIFT-3 steps, levels near 0 on one rank and near 1 on the other, sometimes nothing masked.

    With all thresholds at 0 every parameter is gathered for every use: a rank that runs another forward would compute
    with wrong weights or hang. With the shipped ones parameters are kept, which shows other faults.
    """
    paths = write_stages(tmp_path)
    results = launch_job("divergent", tmp_path / "out.json", *map(str, paths))
    expected = results["zero0"]["losses"]
    assert len(expected) == 50
    assert sum(expected[-10:]) < 0.95 * sum(expected[:10])  # it did train
    for name in ("thresholds0", "shipped"):
        losses = results[name]["losses"]
        assert losses[0] == pytest.approx(expected[0], rel=1e-5)
        assert losses[-1] == pytest.approx(expected[-1], rel=1e-3)
        assert results[name]["leaves"] == 2
        assert results[name]["invalidations"] == 0
        assert results[name]["invalidations_when_the_pattern_changes"] > 0


def test_a_backward_with_checkpointing_lets_go_of_its_layers(tmp_path):
    """LoRA with gradient checkpointing: after a layer's backward nothing of it stays, its frozen matrices included.

    DeepSpeed leaves frozen parameters gathered after a recomputation, but for layers that are gathered as one (its
    issue 8148). Width 64, 128 in the middle, adapters of rank 16 at three matrices: a layer has 4 * 64 * 64 +
    3 * 64 * 128 frozen elements, and 3 * 16 * (64 + 64) trained ones. Norms stay with the shipped thresholds.
    """
    layer = 4 * 64 * 64 + 3 * 64 * 128 + 3 * 16 * (64 + 64)
    config = json.loads((VECTORS / "llada_tiny" / "config.json").read_text())
    config |= {"d_model": 64, "n_layers": NUM_LAYERS, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 128}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    new = NewWeights(read_config(tmp_path / "model"), 1)
    save_file({name: new.tensor(name) for name in new.shapes()}, tmp_path / "model" / "model.safetensors")
    shipped = json.loads((REPOSITORY / "ds_configs" / "zero3.json").read_text()) | {"bf16": {"enabled": False}}
    limits = {key: round(shipped["zero_optimization"][key] / LAYER_8B * layer) for key in THRESHOLDS[1:]}
    paths = []
    for name, changes in {"shipped": {}, "as_8b": limits, "thresholds0": dict.fromkeys(THRESHOLDS, 0)}.items():
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(shipped | {"zero_optimization": shipped["zero_optimization"] | changes}))
    output = tmp_path / "out.json"
    run_script("tests/distributed/gathering.py", output, tmp_path / "model", *paths, num_ranks=2)
    found = json.loads(output.read_text())
    assert found["shipped"]["layer"] == found["as_8b"]["layer"] == found["shipped"]["prefetch"] == layer
    assert len({each["loss"] for each in found.values()}) == 1  # also with half of them
    for each in found.values():
        assert {record["layer"] for record in each["records"]} == set(range(NUM_LAYERS))
        for record in each["records"]:
            assert record["held"][record["layer"]] == each["layer"]
            assert not any(record["held"][record["layer"] + 1 :])
    for name in ("thresholds0", "half"):
        assert found[name]["layer"] == layer + 2 * 64
        for record in found[name]["records"]:
            assert sum(record["held"]) == layer + 2 * 64
    assert 4 * layer < limits["stage3_max_live_parameters"] < 5 * layer  # a layer that is begun may be kept whole
    assert layer < max(sum(record["held"]) for record in found["as_8b"]["records"]) <= 5 * layer
    for record in found["as_8b"]["records"][-130:]:  # of the last micro-batch: the first one is only traced
        assert record["layer"] == 0 or record["held"][record["layer"] - 1] == layer  # the next one is on its way


def test_float32_is_float32_on_every_processor(tmp_path):
    """DeepSpeed's `zero.Init(dtype=torch.float32)` makes bf16 weights where the processor has no float16."""
    found = launch_job("precisions", tmp_path / "out.json", num_ranks=1)
    assert found == {"False": ["torch.float32"], "True": ["torch.bfloat16"]}


@pytest.fixture(scope="module")
def plain_gradient():
    """Loss and gradient of the four documents in one batch, by plain autograd."""
    model, _ = load_pretrained(VECTORS / "llada_tiny")
    batch = collate(*make_documents(7, [0.2, 0.5, 0.8, 0.9], {3}), 99)
    root = DiffusionStep(model, LIFT3).train()
    loss, _ = root(batch, document_scale(batch, "response_tokens", step_counts([batch], root.objective), 1))
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in root.named_parameters()}


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 3), (2, 3), (2, 2), (2, 1)])
def test_the_cut_does_not_change_the_gradient(tmp_path, plain_gradient, num_ranks, stage):
    """1 rank x 4 micro-batches = 2 ranks x 2 = one plain batch of 4, before clipping; also after other cuts."""
    launch_job("gradients", tmp_path / "out.json", str(stage), str(tmp_path / "gradients.pt"), num_ranks=num_ranks)
    loss, expected = plain_gradient
    steps = torch.load(tmp_path / "gradients.pt")
    assert [step["micro_batches"] for step in steps] == [4 // num_ranks, 2 // num_ranks, 4 // num_ranks]
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm().item()
    for step in steps:
        assert step["loss"] == pytest.approx(loss, rel=1e-6)
        assert step["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            assert (step["gradients"][name] - gradient).abs().max().item() <= 1e-6 * largest, name
        assert step["norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("ranks_within_node", [1, 2])
def test_every_rank_reads_its_own_bytes(tmp_path, ranks_within_node):
    """Vectors of 99 elements are cut into 50 and 49 + 1 of padding: the ranks' bytes add up to the tensors' bytes.

    With a second cut within the node (`zero_hpz_partition_size`), which is what the forward gathers, they read theirs
    twice.
    """
    folder = tmp_path / "model"
    config = json.loads((VECTORS / "llada_tiny" / "config.json").read_text())
    config |= {"d_model": 99, "n_layers": 2, "n_heads": 11, "n_kv_heads": 11, "mlp_hidden_size": 51}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    new = NewWeights(read_config(folder), 1)
    state = {name: new.tensor(name) for name in new.shapes()}
    for name in list(state)[::2]:
        state[name] = state[name].bfloat16()
    save_file(state, folder / "model.safetensors")
    num_bytes = sum(tensor.nbytes for tensor in state.values())
    result = launch_job("partitioned_loading", tmp_path / "out.json", str(folder), str(ranks_within_node))
    num_bytes *= ranks_within_node  # 2 ranks, each with 1/2 of the cut within the node
    assert result["worst"] == [0, 0]
    assert result["padding"][0] == 0 < result["padding"][1]
    small = 20_000  # the process reads itself, too: /proc/self/io
    assert num_bytes <= sum(result["bytes"]) < num_bytes + small
    assert abs(result["bytes"][0] - result["bytes"][1]) < small


def test_tied_weights(tmp_path):
    result = launch_job("tied", tmp_path / "out.json")
    assert result["loss"] == pytest.approx(result["expected"], rel=1e-5)
    assert result["is_finite"]


def test_shifted_families_train_and_resume(tmp_path, dream_dir):
    """Dream, and an adapted model with a tied head; with adapters too (no gradient at the first input)."""
    adapted = write_adapted(tmp_path, "qwen3")
    settings = [f"{dream_dir}:0", f"{adapted}:0", f"{adapted}:4"]
    results = launch_job("families", tmp_path / "out.json", str(tmp_path / "saved"), *settings)
    assert list(results) == settings
    for setting, found in results.items():
        assert found["straight"][0] == pytest.approx(found["alone"], rel=1e-5), setting
        assert found["straight"][3] != pytest.approx(found["straight"][0], rel=1e-3), setting
        assert found["resumed"] == found["straight"][2:], setting


def test_blocks_and_mixtures_agree_with_zero_0(tmp_path):
    """Eight steps of vanilla SFT on two ranks with wildly different levels, in one of which a rank learns nothing."""
    results = launch_job("stages", tmp_path / "out.json", *(str(complete_folder(tmp_path, name)) for name in GIVEN))
    for name in GIVEN:
        whole, cut = results[f"{name} 0"], results[f"{name} 3"]
        assert len(set(whole)) == 8
        assert cut == pytest.approx(whole, rel=1e-4), name


def split_experts(folder):
    """Has a mixture send ids below 50 and the mask token to the first half of its experts, all others to the second.

    Embeddings are along one direction, forwards or backwards, which routers read through their layer's norm.
    """
    state = load_file(folder / "model.safetensors")
    embedding = next(state[name] for name in state if "embed" in name)
    direction = torch.randn(embedding.shape[1], generator=torch.Generator().manual_seed(1)).sign()
    is_first = (torch.arange(len(embedding)) < 50) | (torch.arange(len(embedding)) == 250)
    embedding += 20 * torch.where(is_first, 1.0, -1.0)[:, None] * direction
    for name in [name for name in state if name.endswith("mlp.gate.weight")]:
        norm = state[name.replace("mlp.gate", "post_attention_layernorm")]
        sides = torch.ones(len(state[name])).index_fill(0, torch.arange(len(state[name]) // 2, len(state[name])), -1.0)
        state[name] = 0.1 * state[name] + 3 / norm.square().sum() * sides[:, None] * norm * direction
    for name in [name for name in state if name.endswith("expert_bias")]:
        state[name] *= 0.01
    save_file(state, folder / "model.safetensors")


def test_experts_that_one_rank_alone_has_tokens_for(tmp_path):
    """In the scoring pass and the training pass: half of the experts get nothing on one rank, and most on the other."""
    folders = [complete_folder(tmp_path, name) for name in ("llada_moe_tiny", "llada2_tiny")]
    for folder in folders:
        split_experts(folder)
    paths = write_stages(tmp_path)
    results = launch_job("routing", tmp_path / "out.json", ",".join(map(str, paths)), *map(str, folders))
    for folder in folders:
        whole = results[f"{folder.name} zero0"]
        assert sum(whole["losses"][-3:]) < sum(whole["losses"][:3])
        for step in zip(*whole["counts"], strict=True):
            (_, *passes_of_first), (_, *passes_of_second) = sorted(step)
            for first, second in zip(passes_of_first, passes_of_second, strict=True):
                assert first[0] > 0 == first[1] and second[1] > 0
        for name in ("thresholds0", "shipped"):
            found = results[f"{folder.name} {name}"]
            assert found["losses"] == pytest.approx(whole["losses"], rel=1e-4), (folder, name)
            assert found["counts"] == whole["counts"]


def test_blocks_and_mixtures_train_and_resume(tmp_path):
    """Routing differs between ranks, and some experts get no token: what is gathered is the layer, experts and all.

    The bias that chooses LLaDA2's experts is a buffer, which a checkpoint carries.
    """
    settings = [f"{complete_folder(tmp_path, name)}:0" for name in GIVEN]
    results = launch_job("families", tmp_path / "out.json", str(tmp_path / "saved"), *settings)
    assert list(results) == settings
    for setting, found in results.items():
        assert found["straight"][0] == pytest.approx(found["alone"], rel=1e-5), setting
        assert found["straight"][3] != pytest.approx(found["straight"][0], rel=1e-3), setting
        assert found["resumed"] == found["straight"][2:], setting


def test_buffers_of_two_ranks_equal_one(tmp_path):
    result = launch_job("buffers", tmp_path / "out.json")
    assert result["worst"] < 1e-5
    assert result["share"] == pytest.approx(0.5, abs=0.01)
    assert result["bytes"] > 0


@pytest.mark.parametrize("stage", ["2", "3"])
def test_a_spike_on_one_rank_is_left_out_on_all(tmp_path, stage):
    result = launch_job("spikes", tmp_path / "out.json", stage)
    mine, theirs = result["records"]
    assert mine == theirs
    (first, *_), (spike, limit), *rest = mine
    assert limit == 10 * 2.0 < spike  # nine ones, nine twos, and the first step's, which is larger
    assert first > 2
    assert [limit for _, limit in (mine[0], *rest)] == [None, None, None]
    assert result["norms"][-4:] == [norm for norm, _ in mine]
    before, spiked, third, fourth = result["weights"]
    assert before == spiked != third != fourth


@pytest.mark.parametrize("place", ["loader", "layer"])
def test_the_slowest_rank_is_named(tmp_path, place):
    """It sleeps 0.6 s more than the other one, 0.3 s more than the mean, which waits for as long.

    For a late loader in a collective of ours; for a late layer where ZeRO-3 gathers the next one's weights, 0.3 s in
    the mean over both.
    """
    _, *records = launch_job("slow_rank", tmp_path / "out.json", place)["records"]  # the first step has other work

    def median(value):
        return statistics.median(map(value, records))  # the machine may have other work, too

    assert median(lambda record: record["slowest_rank"]["rank"]) == 1
    assert min(record["slowest_rank"]["own_seconds"] for record in records) > 0.6
    assert median(lambda record: record["slowest_rank"]["behind_seconds"]) > 0.2
    if place == "loader":
        assert {record["slowest_ranks"]["data"] for record in records} == {1}
        assert min(record["slowest_seconds"]["data"] for record in records) > 0.6
        assert median(lambda record: record["slowest_ranks"]["communication"]) == 0
    else:
        assert median(lambda record: record["gather_seconds"]) > 0.2


def test_a_rank_that_runs_other_forwards_ends_the_run(tmp_path):
    """Layers of equal shapes in another order: found before the step is applied, on both ranks."""
    result = launch_job("diverging", tmp_path / "out.json")
    first, second = result["errors"]
    assert first == second
    assert first.startswith(
        "step 3: rank 1 ran other forwards than rank 0: call 2 was of model.model.transformer.blocks.1, not "
        "model.model.transformer.blocks.0."
    )
    assert result["steps"] == 2


def test_a_bad_step_on_one_rank_is_left_out_on_all(tmp_path):
    result = launch_job("bad_steps", tmp_path / "out.json")
    assert result["bad"] == [0, 1, 1]
    assert result["samples"] == [None, [1], None]
    first, second, third = result["weights"]
    assert first == second != third  # the step was left out, and training went on
    assert result["errors"][0] == result["errors"][1]
    assert "samples [1]; 2 such steps were left out, optim.max_bad_steps=1" in result["error"]
