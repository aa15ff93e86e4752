"""The plan of a run, from its config and its resolved DeepSpeed JSON."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from lift_ds.config.deepspeed import rows_per_micro_batch
from lift_ds.config.run import RunConfig
from lift_ds.models.families import max_length_of
from lift_ds.objectives import make_objective

from .costs import Rates
from .memory import Setup
from .report import Longest, Plan

UNSTATED_LENGTH = 4096
H100 = Rates()


def longest_allowed(run: RunConfig, config: PretrainedConfig) -> Longest:
    """The longest document or pack without its rows: as the config says, else the model's maximum, 4,096 at most."""
    data = run.data
    stated = data.pack_length or data.max_length if data.packing != "none" else data.max_length or data.pack_length
    return Longest(stated or min(max_length_of(config), UNSTATED_LENGTH))


def largest_by_tokens(budget: int, longest: int, share: int) -> tuple[int, int]:
    """Documents, or packs, of the largest micro-batch that is cut by tokens, and the tokens of each.

    Shorter ones than the longest may fill the budget better: of 3,000 tokens 4,096 hold one, and two of 2,048.

    Args:
        budget: Most tokens of a micro-batch, but for one that is longer.
        longest: Tokens of the longest one.
        share: Documents of a step on a rank.
    """
    documents = min(share, -(-budget // longest))
    return documents, longest if documents == 1 else min(longest, budget // documents)


def plan_of(
    config: PretrainedConfig,
    run: RunConfig,
    ds_json: dict[str, Any],
    num_nodes: int,
    world_size: int,
    gpu_gib: float,
    rates: Rates = H100,
    is_cpu: bool = False,
    longest: Longest | None = None,
) -> Plan:
    """What a run will need.

    Args:
        config: The model's.
        run: The run's.
        ds_json: Resolved DeepSpeed JSON.
        num_nodes: Machines.
        world_size: Ranks on all of them.
        gpu_gib: Memory of a GPU.
        rates: What is assumed of the machines.
        is_cpu: Whether the ranks compute on CPUs.
        longest: Of the documents or packs; `longest_allowed` where not given.

    Raises:
        ValueError: More layers are to be computed again than the model has.
    """
    longest = longest or longest_allowed(run, config)
    share = -(-run.optim.global_batch // world_size)
    rows = rows_per_micro_batch(ds_json)
    if rows is None:
        documents, length = largest_by_tokens(run.data.micro_batch_tokens, longest.length, share)
        num_micro_batches = -(-share * longest.length // (documents * length))
    else:
        documents, length, num_micro_batches = rows, longest.length, int(ds_json["gradient_accumulation_steps"])
    views = 2 if getattr(run.objective, "complementary", False) else 1
    setup = Setup(
        config,
        run.lora,
        ds_json,
        world_size,
        run.model.num_checkpointed(int(config.num_hidden_layers)),
        views * documents,
        length,
        make_objective(run.objective).scoring_pass != "none",
        is_cpu,
    )
    copies_state = run.checkpoint.async_save and 0 < run.checkpoint.save_every < run.optim.steps
    return Plan(setup, num_nodes, documents, num_micro_batches, gpu_gib, rates, longest, copies_state)
