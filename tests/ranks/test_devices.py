"""Devices that are hidden, missing, shared or too old, each in one line; shown on the CPU with made-up surroundings."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lift_ds.ranks import devices
from lift_ds.ranks.launch import Launch
from lift_ds.training import engine


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with `gpus` driven GPUs, or with undriven ones at its bus, and with a build of torch."""

    def make(gpus=0, at_bus=0, cuda="13.0", visible=None, accelerator=None):
        for name in ("dev", "pci"):
            (tmp_path / name).mkdir(exist_ok=True)
        for number in range(gpus):
            (tmp_path / "dev" / f"nvidia{number}").touch()
        (tmp_path / "dev" / "nvidiactl").touch()
        for number in range(at_bus):
            folder = tmp_path / "pci" / f"0000:0{number}:00.0"
            folder.mkdir()
            (folder / "vendor").write_text("0x10de\n")
            (folder / "class").write_text("0x030200\n")
        monkeypatch.setattr(devices, "DEVICE_FILES", tmp_path / "dev")
        monkeypatch.setattr(devices, "PCI_FILES", tmp_path / "pci")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        for name, value in {"CUDA_VISIBLE_DEVICES": visible, "DS_ACCELERATOR": accelerator}.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return make


def fail_to_start(message):
    def init():
        raise RuntimeError(message)

    return init


TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040).\nPlease update"


@pytest.mark.parametrize(
    ("surroundings", "parts"),
    [
        ({"gpus": 2, "visible": ""}, ["has a GPU (", "nvidia0", "CUDA_VISIBLE_DEVICES= hides all: unset it"]),
        ({"gpus": 2, "visible": "7"}, ["CUDA_VISIBLE_DEVICES=7 hides all"]),
        ({"gpus": 2, "cuda": None}, ["is built without CUDA: install a build with it"]),
        ({"at_bus": 1}, ["(PCI 0000:00:00.0)", "no NVIDIA driver is there", "docker --gpus all"]),
        ({"gpus": 1}, ["cannot use it: The NVIDIA driver on your system is too old (found version 11040);"]),
    ],
)
def test_a_gpu_that_torch_does_not_see(machine, monkeypatch, surroundings, parts):
    monkeypatch.setattr(torch.cuda, "init", fail_to_start(TOO_OLD))
    machine(**surroundings)
    with pytest.raises(RuntimeError) as caught:
        devices.check_no_gpu()
    message = str(caught.value)
    for part in [*parts, "; DS_ACCELERATOR=cpu computes on the processor"]:
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "surroundings",
    [{}, {"visible": ""}, {"at_bus": 1, "cuda": None}, {"gpus": 1, "visible": "", "accelerator": "cpu"}],
)
def test_the_processor_is_meant(machine, surroundings):
    """No GPU; none and none visible; one without driver and a torch without CUDA; asked for."""
    machine(**surroundings)
    devices.check_no_gpu()


def test_fewer_devices_than_processes(machine):
    """All processes of a machine find the same, so that it is said once."""
    machine(gpus=2, visible="0,1")
    devices.check_device(Launch(3, 4, 1, 2), 2)
    messages = set()
    for local_rank in range(4):
        with pytest.raises(RuntimeError, match="4 processes on .*, which has 2 accelerators, of CUDA_VIS") as caught:
            devices.check_device(Launch(local_rank, 4, local_rank, 4), 2)
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert "0,1: start at most 2 there (deepspeed --num_gpus, torchrun --nproc_per_node)" in messages.pop()


def test_no_device_at_all(machine):
    machine(gpus=0, accelerator="cuda")
    with pytest.raises(RuntimeError, match="shows no accelerator: no NVIDIA driver is there.*; DS_ACCELERATOR=cpu"):
        devices.check_device(Launch(0, 1, 0, 1), 0)


def test_two_ranks_on_one_gpu(machine):
    """Two torchruns of one process each, on one machine: LOCAL_RANK is 0 in both."""
    machine(gpus=2)
    store = torch.distributed.HashStore()
    first, second = (SimpleNamespace(store=store, launch=Launch(rank, 2, 0, 1)) for rank in (0, 1))
    devices.claim_device(first, "GPU-1")
    devices.claim_device(SimpleNamespace(store=store, launch=Launch(1, 2, 1, 2)), "GPU-2")
    with pytest.raises(
        RuntimeError, match=r"two ranks on one GPU \(GPU-1 of .*, LOCAL_RANK=0, CUDA_VISIBLE_DEVICES=un"
    ):
        devices.claim_device(second, "GPU-1")


@pytest.fixture
def volta(monkeypatch):
    """An accelerator that is a GPU without bf16, as far as it is asked."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(engine, "current_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(engine, "has_accelerator", lambda: True)


def test_a_gpu_without_bf16(volta, monkeypatch):
    """With "auto" it computes in float32; where bf16 is asked for, no weight is read."""
    assert not engine.has_bf16()
    ds_json = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    with pytest.raises(ValueError, match=r'bf16.enabled=true, but Tesla V100 has no bf16.*; write "auto" or false'):
        engine.build_model(None, None, ds_json, "weights")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert engine.has_bf16()


def test_a_processor_is_not_asked_for_bf16():
    assert devices.why_no_bf16(torch.device("cpu")) is None
    assert not engine.has_bf16()


COUNT_HEAPS = """
import ctypes, sys, threading
from pathlib import Path
from lift_ds.ranks.devices import share_heap

libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p

def num_heaps():
    stream = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    return Path(sys.argv[1]).read_text().count("<heap nr=")

before = num_heaps()
share_heap()
kept = []
thread = threading.Thread(target=lambda: kept.append(bytearray(100_000)))  # too large for Python's own blocks
thread.start()
thread.join()
print(num_heaps() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heaps")
@pytest.mark.parametrize(("given", "num_more"), [({}, 0), ({"MALLOC_ARENA_MAX": "64"}, 1)], ids=["shared", "as given"])
def test_threads_share_a_heap_unless_somebody_has_said_how_many(tmp_path, given, num_more):
    command = [sys.executable, "-c", COUNT_HEAPS, tmp_path / "heaps.xml"]
    environment = {name: value for name, value in os.environ.items() if name not in devices.HEAPS} | given
    assert subprocess.check_output(command, env=environment, text=True).split() == [str(num_more)]


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocator_is_told_unless_somebody_has(monkeypatch, name):
    for each in devices.ALLOCATOR:
        monkeypatch.delenv(each, raising=False)
    with monkeypatch.context() as patch:
        patch.setenv(name, "max_split_size_mb:128")
        devices.settle_allocator()
        assert [os.environ[each] for each in devices.ALLOCATOR if each in os.environ] == ["max_split_size_mb:128"]
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")  # to have it taken back
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    devices.settle_allocator()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize(
    ("given", "threads", "line"),
    [
        ("1", 6, "optimizer on the processor: 6 threads a rank, not OMP_NUM_THREADS=1 as torchrun sets it"),
        (None, 6, "optimizer on the processor: 6 threads a rank"),
        ("3", 1, None),
    ],
)
def test_an_offloaded_optimizer_gets_its_cores(monkeypatch, given, threads, line):
    """24 cores, four processes on the machine: six threads each, unless somebody has named a number."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(24)))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert devices.share_cores_beside_gpu(Launch(5, 8, 1, 4)) == line
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
