"""A checkpoint folder is read whole, or refused with one error that says what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.configuration_utils import register_to_config
from safetensors.torch import save_file
from torch import nn

from runner.model.checkpoint import CheckpointError, PretrainedModel, build, load_state, locate, read_safetensors


class Tiny(PretrainedModel):
    unsaved = ("loss",)

    @register_to_config
    def __init__(self, width: int = 3, depth: int = 2):
        super().__init__()
        if width < 1:
            raise ValueError(f"width {width} is below 1")
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    Tiny().save_pretrained(tmp_path)
    return tmp_path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_safetensors(folder)


def replace(folder: Path, state: dict[str, torch.Tensor]) -> None:
    state = {name: tensor.clone() for name, tensor in state.items()}
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    save_file(state, folder / "diffusion_pytorch_model.safetensors")


def test_loads_what_was_saved(folder):
    state = weights(folder)
    model = Tiny.from_pretrained(folder)
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    half = Tiny.from_pretrained(folder.parent, subfolder=folder.name, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.config.width == 3


def test_module_takes_the_very_tensors(folder):
    state = weights(folder)
    model = build(Tiny, {"width": 3, "_class_name": "Tiny", "decay": 0.99}, state, "here")
    assert all(tensor.data_ptr() == state[name].data_ptr() for name, tensor in model.state_dict().items())


def test_shards_are_read_like_one_file(folder, tmp_path_factory):
    sharded = tmp_path_factory.mktemp("sharded")
    model = Tiny.from_pretrained(folder)
    model.save_pretrained(sharded, max_shard_size=60)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    again = Tiny.from_pretrained(sharded)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())

    index = sharded / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="ghost"):
        Tiny.from_pretrained(sharded)
    next(sharded.glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="there is no file"):
        Tiny.from_pretrained(sharded)


def test_variant_names_its_own_file(folder):
    Tiny(depth=2).save_pretrained(folder, variant="fp16")
    plain, variant = Tiny.from_pretrained(folder), Tiny.from_pretrained(folder, variant="fp16")
    assert not torch.equal(plain.layers[0].weight, variant.layers[0].weight)
    with pytest.raises(CheckpointError, match="diffusion_pytorch_model.int8.safetensors"):
        Tiny.from_pretrained(folder, variant="int8")


def test_one_error_names_all_that_does_not_fit(folder):
    state = weights(folder)
    state["layers.7.weight"] = torch.zeros(3, 3)
    state["layers.0.weight"] = torch.zeros(3, 4)
    state["layers.0.bias"] = torch.zeros(3, dtype=torch.int8)
    del state["layers.1.bias"]
    replace(folder, state)
    with pytest.raises(CheckpointError) as caught:
        Tiny.from_pretrained(folder)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError) and str(folder) in message
    assert "1 missing: layers.1.bias [3]" in message
    assert "1 unexpected: layers.7.weight [3, 3]" in message
    assert "2 misshapen: layers.0.weight [3, 4], not [3, 3]; layers.0.bias [3] int8, not [3]" in message


def test_long_lists_are_counted(folder):
    (folder / "config.json").write_text(json.dumps({"depth": 30}))
    with pytest.raises(CheckpointError, match=r"56 missing: layers\.2\.weight \[3, 3\]; .*; and 44 more$"):
        Tiny.from_pretrained(folder)


def test_refused_state_leaves_the_module_alone(folder):
    model = Tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="here"):
        load_state(model, {"layers.0.weight": torch.zeros(3, 3)}, "here")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_names_of_the_loss_may_be_there(folder):
    replace(folder, weights(folder) | {"loss.logvar": torch.zeros(1)})
    assert "loss.logvar" not in Tiny.from_pretrained(folder).state_dict()


def test_what_is_missing_is_said(folder, tmp_path_factory):
    with pytest.raises(CheckpointError, match="no folder .*nowhere"):
        Tiny.from_pretrained(folder / "nowhere")
    with pytest.raises(CheckpointError, match="no folder .*nowhere"):
        Tiny.from_pretrained(folder, subfolder="nowhere")
    with pytest.raises(CheckpointError, match="no folder nowhere"):
        Tiny.from_pretrained("nowhere")
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tiny.from_pretrained(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        Tiny.from_pretrained(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="no JSON object"):
        Tiny.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tiny.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="has no config.json"):
        Tiny.from_pretrained(folder)


def test_config_that_the_model_refuses_names_the_folder(folder):
    (folder / "config.json").write_text(json.dumps({"width": 0}))
    with pytest.raises(CheckpointError, match=f"{folder.name}.*width 0 is below 1"):
        Tiny.from_pretrained(folder)


def test_hub_id_is_looked_up_with_its_revision(folder, monkeypatch):
    asked = {}

    def snapshot_download(repository, **options):
        asked.update(options, repository=repository)
        return str(folder.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model = Tiny.from_pretrained("owner/name", subfolder=folder.name, revision="v1", cache_dir=folder)
    assert torch.equal(model.layers[0].weight, weights(folder)["layers.0.weight"])
    assert (asked["repository"], asked["revision"], asked["cache_dir"]) == ("owner/name", "v1", folder)
    assert f"{folder.name}/config.json" in asked["allow_patterns"]
    assert locate(f"owner/name/{folder.name}") == folder


def test_hub_id_that_cannot_be_read_is_one_error(tmp_path):
    with pytest.raises(CheckpointError, match="no folder here"):
        locate("owner/nothing", cache_dir=tmp_path, local_files_only=True)


def test_options_that_would_change_something_are_refused(folder):
    Tiny.from_pretrained(folder, device_map=None, low_cpu_mem_usage=True, offload_state_dict=False)
    with pytest.raises(TypeError, match="device_map"):
        Tiny.from_pretrained(folder, device_map="auto")


def test_unsaved_buffers_must_not_be_on_the_meta_device():
    class Buffered(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.zeros(3), persistent=False)

    with pytest.raises(RuntimeError, match="table"):
        build(Buffered, {}, {}, "here")
