"""One wrong bit in any file of a checkpoint is found before anything is taken from it."""

import random

import pytest

from lift_ds.storage.manifest import MANIFEST_SUM, find_checkpoint, find_faults, read_manifest
from tests.conftest import BASE, SMALL, launch_train

RUN = [*SMALL, "--model", BASE, "optim.steps=2", "checkpoint.save_every=0", "eval.solve_items=0", "eval.every=1"]
RUN += ["optim.skip_above=5", "eval.patience=3"]
RUNS = {
    "memory": ["objective.scoring=memory"],
    "adapters": ["objective.scoring=buffer", "lora.rank=4", "model.from_scratch=false"],
}
KINDS = {
    "memory": {"zero", "lanes.json", "run.json", "hf", "difficulty", "difficulty_memory", "gradient_norms.json"}
    | {"patience.json", "manifest.json", "manifest.sha256", "latest", "zero_to_fp32.py", "zero_to_torch.py"},
    "adapters": {"base.json"},
}


@pytest.fixture(scope="module", params=list(RUNS))
def checkpoint(request, tmp_path_factory):
    """A checkpoint of a whole model with the memory, or one of adapters with the table."""
    output = tmp_path_factory.mktemp(request.param)
    launch_train(*RUN, "--output", output, *RUNS[request.param])
    found = output / "checkpoints" / "step-000002"
    assert {path.relative_to(found).parts[0] for path in found.rglob("*")} >= KINDS[request.param]
    return found


@pytest.mark.distributed
def test_a_wrong_bit_in_any_file(checkpoint):
    chance = random.Random("wrong bytes")
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        name = str(path.relative_to(checkpoint)).replace("manifest.sha256", "manifest.json")
        for place in (0, chance.randrange(len(whole)), len(whole) - 1):
            wrong = bytearray(whole)
            wrong[place] ^= 1 << chance.randrange(8)
            path.write_bytes(wrong)
            with pytest.raises(ValueError, match=f"^checkpoint.resume=auto: no whole checkpoint in .*{name}.* changed"):
                find_checkpoint(checkpoint.parent, "auto")
        path.write_bytes(whole)
    assert find_checkpoint(checkpoint.parent, "auto") == (checkpoint, [])


@pytest.mark.distributed
def test_any_wrong_bit_of_a_manifest(checkpoint):
    """Step, ranks, stage and model as well, which no file's checksum holds."""
    path = checkpoint / "manifest.json"
    whole = path.read_bytes()
    for place in range(whole.index(b'"files"')):
        for bit in range(8):
            wrong = bytearray(whole)
            wrong[place] ^= 1 << bit
            path.write_bytes(wrong)
            with pytest.raises(ValueError, match="no readable manifest.json: it or manifest.sha256 has changed"):
                read_manifest(checkpoint)
    path.write_bytes(whole)
    (checkpoint / MANIFEST_SUM).rename(path.with_name("aside"))  # as checkpoints were before there was one
    assert not find_faults(checkpoint, read_manifest(checkpoint))
    path.with_name("aside").rename(checkpoint / MANIFEST_SUM)
