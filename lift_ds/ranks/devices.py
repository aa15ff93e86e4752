"""The device of a process: whether there is one, that no other process has it, what it can, and what runs beside it."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch

from .launch import Launch
from .meeting import Meeting

VISIBLE = "CUDA_VISIBLE_DEVICES"
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the first's older name
THREADS = "OMP_NUM_THREADS"
HEAPS = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
DEVICE_FILES, PCI_FILES = Path("/dev"), Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", "0x03"  # PCI vendor, and how classes of display controllers begin
ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h
ON_PROCESSOR = "DS_ACCELERATOR=cpu computes on the processor"


def check_no_gpu() -> None:
    """Checks that a process that is about to compute on the processor does so because there is nothing else.

    Raises:
        RuntimeError: The machine has an NVIDIA GPU that torch does not see, and nobody asked for the processor.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return
    gpu = find_gpu()
    if gpu is not None:
        raise RuntimeError(f"{platform.node()} has a GPU ({gpu}), but {why_no_gpu()}; {ON_PROCESSOR}")


def find_gpu() -> str | None:
    """An NVIDIA GPU of this machine: a device of its driver's, or, for a torch with CUDA, one at the PCI bus."""
    driven = sorted(DEVICE_FILES.glob("nvidia[0-9]*"))
    if driven:
        return str(driven[0])
    for folder in sorted(PCI_FILES.glob("*")) if torch.version.cuda else []:
        try:
            vendor, kind = ((folder / name).read_text(encoding="utf-8").strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == NVIDIA and kind.startswith(DISPLAY):
            return f"PCI {folder.name}"
    return None


def why_no_gpu() -> str:
    """Why torch sees no GPU, and what to do about it."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install a build with it"
    if not any(DEVICE_FILES.glob("nvidia[0-9]*")):
        return "no NVIDIA driver is there: load it, or start the container with its GPUs (docker --gpus all)"
    if os.environ.get(VISIBLE) is not None:
        return f"{VISIBLE}={os.environ[VISIBLE]} hides all: unset it, or name some, as {VISIBLE}=0,1"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        return f"torch {torch.__version__} cannot use it: {reason}"
    return f"torch {torch.__version__} counts none"


def check_device(launch: Launch, num_devices: int) -> None:
    """Checks that this machine has a device for each of its processes.

    Raises:
        RuntimeError: There are fewer devices than processes.
    """
    if num_devices == 0:
        raise RuntimeError(f"{platform.node()} shows no accelerator: {why_no_gpu()}; {ON_PROCESSOR}")
    if launch.local_world_size > num_devices:
        visible = os.environ.get(VISIBLE)
        only = "" if visible is None else f", of {VISIBLE}={visible}"
        raise RuntimeError(
            f"{launch.local_world_size} processes on {platform.node()}, which has {num_devices} accelerators{only}: "
            f"start at most {num_devices} there (deepspeed --num_gpus, torchrun --nproc_per_node)"
        )


def claim_device(meeting: Meeting, device: str) -> None:
    """Takes a GPU for this rank among those that meet.

    Args:
        meeting: Where.
        device: What no other GPU is called, its UUID.

    Raises:
        RuntimeError: Another rank has it.
    """
    if meeting.store.add(f"device/{device}", 1) > 1:
        raise RuntimeError(
            f"two ranks on one GPU ({device} of {platform.node()}, LOCAL_RANK={meeting.launch.local_rank}, "
            f"{VISIBLE}={os.environ.get(VISIBLE, 'unset')}): start one torchrun or deepspeed on each machine, with one "
            "process for each of its GPUs"
        )


def why_no_bf16(device: torch.device) -> str | None:
    """Why a GPU does not compute in bf16; `None` where it does, and for what is no GPU."""
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    return f"{torch.cuda.get_device_name(device)} has no bf16, which NVIDIA's GPUs have from Ampere on"


def settle_allocator() -> None:
    """Has torch's GPU memory grow in place, unless the environment says how; for a process that has taken none yet.

    Micro-batches differ in length, and blocks of fixed sizes would leave gaps that none of them fits.
    """
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def give_back_memory() -> None:
    """Has glibc give back what this process has freed; blocks to come have their pages cleared anew."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # which other C libraries do not have
    if trim is not None:
        trim(0)


def share_heap() -> None:
    """Has glibc serve all threads from one heap, unless the environment says how many.

    Threads that move gradients on a processor would each keep what they once needed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name in os.environ for name in HEAPS):
        mallopt(ARENA_MAX, 1)


def share_cores(launch: Launch) -> None:
    """Has this process use its share of the machine's cores, unless OMP_NUM_THREADS says how many."""
    if THREADS not in os.environ:
        torch.set_num_threads(core_share(launch))


def share_cores_beside_gpu(launch: Launch) -> str | None:
    """Has an optimizer on the processor use this process's share of the cores, and says so.

    torchrun sets OMP_NUM_THREADS=1 where nobody has set it; any other number is somebody's wish, and stays.
    """
    if os.environ.get(THREADS, "1") != "1":
        return None
    torch.set_num_threads(core_share(launch))
    instead = f", not {THREADS}=1 as torchrun sets it" if THREADS in os.environ else ""
    return f"optimizer on the processor: {core_share(launch)} threads a rank{instead}"


def core_share(launch: Launch) -> int:
    """The cores that this process may use, divided by the processes of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // launch.local_world_size)
