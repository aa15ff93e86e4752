import ast
import importlib
import json
import shutil
import subprocess
import sys
import venv

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from lift_ds import generate, generate_blocks, load_pretrained
from lift_ds.export.folder import export_folder
from lift_ds.export.modeling_file import joined_source
from lift_ds.models.families import FAMILIES, family_of, read_config
from lift_ds.models.weights import NewWeights
from tests.conftest import VECTORS, run
from tests.models.block_vectors import GIVEN, load
from tests.small_models import write_adapted


@pytest.fixture
def state(llada_dir):
    return load_file(llada_dir / "model.safetensors")


def test_round_trip(state, llada_dir, llada, tmp_path):
    export_folder(state, llada_dir, tmp_path / "out", torch.float32)
    model, _ = load_pretrained(tmp_path / "out")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(input_ids=ids).logits, llada(input_ids=ids).logits)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    original = json.loads((llada_dir / "config.json").read_text())
    changed = {key for key in config if config[key] != original.get(key)}
    assert changed <= {"auto_map", "architectures"}
    assert set(original) <= set(config)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}


def test_shards(state, llada_dir, tmp_path):
    export_folder(state, llada_dir, tmp_path / "out", torch.float32, max_shard_bytes=40_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    model, _ = load_pretrained(tmp_path / "out")
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in state.items())


def test_dtype(state, llada_dir, tmp_path):
    export_folder(state, llada_dir, tmp_path / "out", torch.bfloat16)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_nothing_is_overwritten_and_nothing_half_written(state, llada_dir, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        export_folder(state, llada_dir, tmp_path / "out", torch.float32)
    incomplete = {name: tensor for name, tensor in state.items() if "ln_f" not in name}
    with pytest.raises(ValueError, match="missing"):
        export_folder(incomplete, llada_dir, tmp_path / "other", torch.float32)
    assert not (tmp_path / "other").exists()


@pytest.fixture
def exports(llada_dir, dream_dir, tmp_path):
    """An export of each modelling file, by family; its config says what the reference vectors' do not."""
    bases = {"llada": llada_dir, "dream": dream_dir}
    for vectors, given in GIVEN.items():
        base = tmp_path / vectors
        shutil.copytree(VECTORS / vectors, base)
        raw = json.loads((base / "config.json").read_text()) | given
        (base / "config.json").write_text(json.dumps(raw))
        bases[vectors.removesuffix("_tiny")] = base
    for name, base in bases.items():
        export_folder(load_file(base / "model.safetensors"), base, tmp_path / name, torch.float32)
    return {name: tmp_path / name for name in bases} | {"a2d": write_adapted(tmp_path, "qwen3")}


@pytest.mark.parametrize("name", GIVEN)
def test_blocks_and_mixtures_come_back_to_the_byte(name, tmp_path):
    """Loaded and exported: keys, shapes, bytes, config fields and architectures are the public ones."""
    state = load(name).state_dict()
    export_folder(state, VECTORS / name, tmp_path / "out", torch.float32)
    written, original = (load_file(each / "model.safetensors") for each in (tmp_path / "out", VECTORS / name))
    assert written.keys() == original.keys()
    for key, tensor in original.items():
        assert (written[key].shape, written[key].dtype) == (tensor.shape, tensor.dtype)
        assert written[key].numpy().tobytes() == tensor.numpy().tobytes()
    fields = json.loads((VECTORS / name / "config.json").read_text())
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    assert set(fields) <= set(exported)
    assert {key for key in fields if exported[key] != fields[key]} == {"auto_map"}
    again, _ = load_pretrained(tmp_path / "out", **GIVEN[name])
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    assert torch.equal(again(input_ids=ids).logits, load(name)(input_ids=ids).logits)


def test_the_bias_of_the_choice_is_exported_as_it_is(tmp_path):
    """In a bf16 export the other weights are rounded."""
    state = load("llada2_tiny").state_dict()
    export_folder(state, VECTORS / "llada2_tiny", tmp_path / "out", torch.bfloat16)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["model.layers.1.mlp.gate.expert_bias"], state["model.layers.1.mlp.gate.expert_bias"])
    types = {key: tensor.dtype for key, tensor in written.items() if tensor.dtype != torch.bfloat16}
    assert types == {"model.layers.1.mlp.gate.expert_bias": torch.float32}


def test_exports_of_block_models_answer(exports):
    for name in ("sdar", "llada2"):
        reference = json.loads((exports[name] / "config.json").read_text())["auto_map"]["AutoModel"]
        theirs = get_class_from_dynamic_module(reference, exports[name]).from_pretrained(exports[name]).eval()
        assert type(theirs).__module__.startswith("transformers_modules"), name
        ours, _ = load_pretrained(exports[name])
        prompt = torch.tensor([5, 6, 7, 8, 9])
        assert torch.equal(generate_blocks(theirs, prompt, 16, 4), generate_blocks(ours, prompt, 16, 4)), name


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_an_export_that_transformers_loaded_answers(exports, cache):
    """Where it loads the classes of the folder, as it does unless this package was imported before."""
    prompt = torch.tensor([[5, 6, 7]])
    for name in ("llada", "dream", "a2d", "llada_moe"):
        folder = exports[name]
        reference = json.loads((folder / "config.json").read_text())["auto_map"]["AutoModel"]
        theirs = get_class_from_dynamic_module(reference, folder).from_pretrained(folder).eval()
        assert type(theirs).__module__.startswith("transformers_modules"), name
        ours, _ = load_pretrained(folder)
        found = generate(theirs, prompt, 8, 8, 4, cache=cache)
        assert torch.equal(found, generate(ours, prompt, 8, 8, 4, cache=cache)), name


def test_a_model_of_another_family_is_refused():
    with pytest.raises(ValueError, match="a model with a GPT2Config is of no family known here: llada, Dream"):
        family_of(GPT2Config())


CLEAN_LOADING = """
import sys, torch, transformers
sys.modules["lift_ds"] = None  # an import of it raises
for name, folder in FOLDERS.items():
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    torch.save(model(input_ids=torch.tensor(IDS)).logits, OUTPUT + "/" + name + ".pt")
    assert {each.rpartition(".")[2] for each, _ in model.named_buffers()} <= {"expert_bias"}, name
for auto in (transformers.AutoModelForCausalLM, transformers.AutoModel):
    try:
        auto.from_pretrained(FOLDERS["a2d"], trust_remote_code=False)
    except ValueError:
        continue
    sys.exit("an adapted model loaded as a causal one")
print(transformers.__version__)
"""


def load_in_clean_python(python, exports, tmp_path):
    """Loads the exports where lift_ds cannot be imported; compares logits and returns transformers' version."""
    ids = [[5, 6, 7, 8]]
    names = {"FOLDERS": {name: str(folder) for name, folder in exports.items()}, "IDS": ids, "OUTPUT": str(tmp_path)}
    code = "".join(f"{name} = {value!r}\n" for name, value in names.items()) + CLEAN_LOADING
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = run([str(python), "-c", code], cwd=tmp_path, env=environment)
    for name, folder in exports.items():
        expected = load_pretrained(folder)[0](input_ids=torch.tensor(ids)).logits
        torch.testing.assert_close(torch.load(tmp_path / f"{name}.pt"), expected, atol=1e-5, rtol=1e-5)
    return done.stdout.split()[-1]


def test_exports_load_without_lift_ds(exports, tmp_path):
    load_in_clean_python(sys.executable, exports, tmp_path)


def test_a_folder_carries_one_modelling_file(exports):
    for name, folder in exports.items():
        (path,) = folder.glob("*.py")
        assert path.name == f"modeling_{name}.py"
        imported = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        packages = {module.split(".")[0] for module in imported}
        standard = {"__future__", "collections", "dataclasses", "functools", "typing"}
        assert packages <= standard | {"torch", "transformers"}
        assert "Family" not in path.read_text()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_modelling_file_is_the_familys_without_its_row(name):
    """All classes and functions of its module and of the neighbours, and no row."""
    module = importlib.import_module(FAMILIES[name].model_class.__module__)
    joined = joined_source(module.__name__)
    defined = {node.name for node in ast.parse(joined).body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    classes = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    assert {"RMSNorm", "MaskedDiffusionModel", "rotate"} | classes <= defined
    assert "Family" not in joined and not joined.endswith("\n\n")


def test_ids_that_only_the_tokenizer_knows_are_written(tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / "base")
    raw = json.loads((tiny_dir / "config.json").read_text())
    expected = raw.pop("mask_token_id")
    (tmp_path / "base" / "config.json").write_text(json.dumps(raw))
    source = NewWeights(read_config(tmp_path / "base"), 0)
    state = {name: source.tensor(name) for name in source.shapes()}
    export_folder(state, tmp_path / "base", tmp_path / "out", torch.float32)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mask_token_id"] == expected


@pytest.mark.parametrize("line", ["from lift_ds.models import layers", "import lift_ds.models.layers as layers"])
def test_a_module_that_an_export_cannot_carry_is_refused(line, tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text(f"import torch\n{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    with pytest.raises(ValueError, match=r"own_module.py:2: \S*layers is imported as a module"):
        joined_source("own_module")


@pytest.mark.slow
def test_transformers_4_loads_exports(exports, tmp_path):
    """A clean environment with transformers 4, without lift_ds, gives the same logits."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = [f"torch=={torch.__version__.split('+')[0]}", "transformers==4.57.1", "numpy"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    assert load_in_clean_python(python, exports, tmp_path).startswith("4.")
    shutil.rmtree(tmp_path / "venv")
