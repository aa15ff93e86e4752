"""Reading ZeRO shards: the same numbers as DeepSpeed's own script, and nothing read from shards that do not fit."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from lift_ds.storage.torch_file import open_torch_file
from lift_ds.storage.zero_checkpoint import open_zero_checkpoint
from lift_ds.storage.zero_files import find_shard_folder
from tests.export.shards import moment, odd_content, write_shards


def opened(folder):
    return open_zero_checkpoint(find_shard_folder(folder))


@pytest.mark.parametrize("world", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("changes", [{}, {"master_dtype": torch.bfloat16}, {"alignment": 8}], ids=str)
def test_equals_zero_to_fp32(tmp_path, stage, world, changes):
    folder = write_shards(tmp_path / "run", odd_content(**changes), stage, world)
    expected = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    zero = opened(folder)
    found = zero.weights()
    assert set(found) | set(zero.aliases) == set(expected)
    for name, tensor in found.items():
        assert tensor.shape == expected[name].shape
        assert torch.equal(tensor.load().to(expected[name].dtype), expected[name]), name
    assert torch.equal(found[zero.aliases["head.weight"]].load(), expected["head.weight"])


@pytest.mark.parametrize(("stage", "world"), [(2, 3), (3, 3), (2, 8), (3, 8)])
def test_moments_and_ranges(tmp_path, stage, world):
    """exp_avg = w / 2 and exp_avg_sq = w^2 in what was written; any range of a tensor is that range."""
    content = odd_content()
    zero = opened(write_shards(tmp_path / "run", content, stage, world))
    for key in ("exp_avg", "exp_avg_sq"):
        found = zero.trained(key)
        for group in content.groups:
            for name, tensor in group.items():
                expected = moment(tensor, key).flatten()
                for start in range(0, tensor.numel() + 1, 5):
                    for stop in range(start, tensor.numel() + 1, 7):
                        assert torch.equal(found[name].read(start, stop), expected[start:stop])
    assert (zero.step, zero.stage, zero.world_size) == (7, stage, world)


@pytest.mark.parametrize("world", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("readers", [1, 2, 3, 8, 64])
def test_a_rank_opens_only_the_files_of_its_ranges(tmp_path, world, readers):
    """Each reads its own ceil(n / N) elements of every tensor, as from all files; as many ranks open two at most."""
    folder = find_shard_folder(write_shards(tmp_path / "run", odd_content(), 3, world))
    everything = open_zero_checkpoint(folder)
    for rank in {0, readers // 2, readers - 1}:
        zero = open_zero_checkpoint(folder, (rank, readers))
        assert zero.world_size == world and (readers != world or set(zero.optimizer_files) <= {0, rank})
        for kind in ("master", "exp_avg"):
            for name, tensor in everything.trained(kind).items():
                mine = -(-tensor.num_elements // readers)
                start = min(rank * mine, tensor.num_elements)
                stop = min(start + mine, tensor.num_elements)
                assert torch.equal(zero.trained(kind)[name].read(start, stop), tensor.read(start, stop))
        for name, tensor in everything.frozen.items():
            mine = -(-tensor.num_elements // readers)
            start = min(rank * mine, tensor.num_elements)
            stop = min(start + mine, tensor.num_elements)
            assert torch.equal(zero.frozen[name].read(start, stop), tensor.read(start, stop))


def rewrite(path, change):
    saved = torch.load(path, weights_only=False)
    change(saved)
    torch.save(saved, path)


def other_run(path):
    """A shard of the same name and size of another step."""
    rewrite(path, lambda saved: saved.update(global_steps=9))


def other_world(path):
    rewrite(path, lambda saved: saved["optimizer_state_dict"].update(partition_count=3))


def other_names(path):
    def change(saved):
        saved["param_shapes"][0]["renamed"] = saved["param_shapes"][0].pop("embed.weight")

    rewrite(path, change)


def shorter_group(path):
    def change(saved):
        groups = saved["optimizer_state_dict"]["fp32_flat_groups"]
        groups[0] = groups[0][:-3].clone()

    rewrite(path, change)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-500])


OPTIMIZER, MODEL = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (OPTIMIZER, Path.unlink, "optim_states of rank 1 missing"),
        (MODEL, Path.unlink, "model_states of rank 1 missing"),
        (OPTIMIZER, truncated, "no whole file of torch.save"),
        (OPTIMIZER, other_world, "is of 3 ranks, 4 optim_states are in"),
        (MODEL, other_run, "its step is 9, that of"),
        (MODEL, other_names, "its param_shapes are"),
        (OPTIMIZER, shorter_group, "elements 56 to 58 of 56 are needed"),
        (OPTIMIZER, lambda path: torch.save({"weights": 1}, path), "no shard of a ZeRO checkpoint"),
        (OPTIMIZER, lambda path: path.write_bytes(b"x" * 99), "no whole file of torch.save"),
        (OPTIMIZER, lambda path: shutil.copy(path, path.with_name(path.name[5:])), "are both of rank 1"),
        (MODEL, lambda path: path.with_name(path.name.replace("mp_rank_00", "mp_rank_01")).touch(), "tensor paral"),
    ],
)
def test_shards_that_do_not_fit(tmp_path, name, damage, message):
    folder = write_shards(tmp_path / "run", odd_content(), 3, 4)
    damage(folder / "global_step7" / name)
    with pytest.raises(ValueError, match=message):
        opened(folder).weights()


class Touch:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def by_name(stage, protocol):
    """How members of enumerations are written by Python 3.11.0 to 3.11.4."""
    return getattr, (type(stage), stage.name)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_stage_that_is_written_by_its_name(tmp_path, stage, monkeypatch):
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", by_name)
    folder = write_shards(tmp_path / "run", odd_content(), stage, 2)
    zero = opened(folder)
    assert zero.stage == stage
    assert zero.weights()


class ByName:
    def __init__(self, owner, name):
        self.asked = (owner, name)

    def __reduce__(self):
        return getattr, self.asked


@pytest.mark.parametrize(("owner", "name"), [(set, "add"), (torch.Size, "numel"), (ZeroStageEnum, "__init_subclass__")])
def test_nothing_else_is_asked_for_by_name(tmp_path, owner, name):
    torch.save({"module": ByName(owner, name)}, tmp_path / "x.pt")
    with pytest.raises(
        ValueError,
        match=f"x.pt: its pickle cannot be read: it asks for '{name}' of .*which no checkpoint of DeepSpeed's needs",
    ):
        open_torch_file(tmp_path / "x.pt")


def test_a_malicious_pickle_is_not_executed(tmp_path):
    folder = write_shards(tmp_path / "run", odd_content(), 3, 2)
    path = folder / "global_step7" / MODEL
    proof = tmp_path / "executed"
    rewrite(path, lambda saved: saved.update(client=Touch(proof)))
    with pytest.raises(ValueError, match=f"{MODEL}: its pickle names posix.mkdir.*nothing of it was executed"):
        opened(folder)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # it would have been


@pytest.mark.parametrize(
    "payload", [b"cos\nsystem\n(S'true'\ntR.", b"\x80\x02cbuiltins\neval\nq\x00.", b"garbage", b""]
)
def test_crafted_pickles(tmp_path, payload):
    folder = write_shards(tmp_path / "run", odd_content(), 3, 2)
    path = folder / "global_step7" / MODEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", payload)
        archive.writestr("x/byteorder", "little")
    with pytest.raises(ValueError, match=MODEL):
        opened(folder)


def test_storages_are_judged(tmp_path):
    """A storage that is shorter than the pickle says, and one that is compressed."""
    path = tmp_path / "file.pt"
    torch.save({"a": torch.arange(100.0)}, path)
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("file/data.pkl")
    for kind, data in ((zipfile.ZIP_STORED, b"\0" * 12), (zipfile.ZIP_DEFLATED, b"\0" * 400)):
        with zipfile.ZipFile(path, "w", kind) as archive:
            archive.writestr("file/data.pkl", pickled)
            archive.writestr("file/data/0", data)
        with pytest.raises(ValueError, match="storage 0 has"):
            open_torch_file(path)


def test_tensors_of_other_layouts(tmp_path):
    """Transposed, cut out of a larger storage, scalar and empty ones; sets and Python numbers."""
    base = torch.arange(24.0).view(4, 6)
    saved = {"t": base.t(), "part": base[1:3, 2:4], "scalar": torch.tensor(3), "none": torch.empty(0), "set": {1, 2}}
    torch.save(saved, tmp_path / "file.pt")
    root = open_torch_file(tmp_path / "file.pt").root
    for name in ("t", "part", "scalar", "none"):
        assert torch.equal(root[name].load(), saved[name])
    assert root["set"] == {1, 2}


def test_where_shards_are_found(tmp_path):
    folder = write_shards(tmp_path / "run", odd_content(), 3, 2)
    assert find_shard_folder(folder) == find_shard_folder(folder / "global_step7") == folder / "global_step7"
    (folder / "latest").write_text("global_step8")
    with pytest.raises(ValueError, match="points to global_step8, which is not there"):
        find_shard_folder(folder)
    with pytest.raises(ValueError, match="no ZeRO shards"):
        find_shard_folder(tmp_path)
    with pytest.raises(ValueError, match="no such"):
        find_shard_folder(tmp_path / "nowhere")
