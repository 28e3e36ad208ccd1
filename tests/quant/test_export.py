from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from quant.toy_dit import KEEP_FLOAT, ToyDiT, input_ranges, quantize, toy_call
from safetensors.torch import load_file

from runner.quant import export
from runner.quant.layers import select
from runner.quant.swap import apply

JSON, WEIGHTS = "quant_model_description_w8a8.json", "quant_model_weight_w8a8.safetensors"


@pytest.fixture
def made(toy: ToyDiT) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    model = toy.bfloat16()
    ranges = input_ranges(model, [toy_call(0, torch.bfloat16)])
    return quantize(model, ranges, select(model, ["*"], KEEP_FLOAT).quantized)


def test_round_trip_and_what_lies_on_disk(tmp_path: Path, made: tuple) -> None:
    tensors, description = made
    assert export.save(tmp_path / "new" / "folder", tensors, description) == tmp_path / "new" / "folder" / JSON
    folder = tmp_path / "new" / "folder"
    assert sorted(f.name for f in folder.iterdir()) == [JSON, WEIGHTS]
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o640 and not file.is_symlink()
    text = (folder / JSON).read_text()
    assert text.startswith('{\n  "model_quant_type": "W8A8",\n  "pos_embed.weight": "W8A8",\n')
    assert json.loads(text) == description

    for path in (folder, folder / JSON):
        loaded, read = export.load(path)
        assert read == description and list(read) == list(description)
        assert loaded.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert loaded[key].dtype == tensor.dtype and torch.equal(loaded[key], tensor)
    plain = load_file(folder / WEIGHTS)  # any safetensors reader sees the same
    assert plain.keys() == tensors.keys()


def test_the_loaded_model_computes_what_the_one_in_memory_does(tmp_path: Path, made: tuple) -> None:
    export.save(tmp_path, *made)
    with torch.device("meta"):
        fresh = ToyDiT()
    call = toy_call(3, torch.bfloat16)
    assert torch.equal(apply(fresh, *export.load(tmp_path))(**call), apply(ToyDiT(), *made)(**call))


def test_bytes_are_a_function_of_the_tensors(tmp_path: Path, made: tuple) -> None:
    tensors, description = made
    backwards = dict(reversed(tensors.items()))
    digests = set()
    for name, given in {"a": tensors, "b": backwards, "c": {k: t.clone() for k, t in tensors.items()}}.items():
        export.save(tmp_path / name, given, description)
        digests.add(
            tuple(hashlib.sha256((tmp_path / name / file).read_bytes()).hexdigest() for file in (JSON, WEIGHTS))
        )
    assert len(digests) == 1


def test_ranks_have_files_of_their_own(tmp_path: Path, made: tuple) -> None:
    for rank in (0, 1):
        export.save(tmp_path, *made, rank=rank)
    names = sorted(f.name for f in tmp_path.iterdir())
    assert names == [
        "quant_model_description_w8a8_0.json",
        "quant_model_description_w8a8_1.json",
        "quant_model_weight_w8a8_0.safetensors",
        "quant_model_weight_w8a8_1.safetensors",
    ]
    assert export.load(tmp_path / names[1])[1] == made[1]
    with pytest.raises(ValueError, match="holds 2 descriptions; name one of quant_model_description_w8a8_0.json"):
        export.load(tmp_path)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, made: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    export.save(tmp_path, *made)
    before = (tmp_path / WEIGHTS).read_bytes()

    def broken(_: dict, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(export, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        export.save(tmp_path, *made)
    assert (tmp_path / WEIGHTS).read_bytes() == before
    assert sorted(f.name for f in tmp_path.iterdir()) == [JSON, WEIGHTS]


def test_a_link_is_replaced_not_followed(tmp_path: Path, made: tuple) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / WEIGHTS).symlink_to(tmp_path / "precious")
    export.save(tmp_path / "out", *made)
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "out" / WEIGHTS).is_symlink()


def test_missing_and_broken_files_are_named(tmp_path: Path, made: tuple) -> None:
    with pytest.raises(FileNotFoundError, match="holds no quant_model_description"):
        export.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        export.load(tmp_path / "nowhere")
    export.save(tmp_path, *made)
    with pytest.raises(ValueError, match="name the description"):
        export.load(tmp_path / WEIGHTS)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=f"{WEIGHTS}: not a whole safetensors file"):
        export.load(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"{WEIGHTS}: missing; {JSON} describes it"):
        export.load(tmp_path)
    for text, message in [
        ("{", "not a description"),
        ("[]", "flat object"),
        ('{"a": 1}', "flat object"),
        ("{}", "has no"),
    ]:
        (tmp_path / JSON).write_text(text)
        with pytest.raises(ValueError, match=message):
            export.load(tmp_path)


def drop(key: str) -> Callable[[dict, dict], None]:
    return lambda tensors, description: tensors.pop(key)


def put(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict, dict], None]:
    return lambda tensors, description: tensors.update({key: change(tensors[key])})


def tag(key: str, value: str) -> Callable[[dict, dict], None]:
    return lambda tensors, description: description.update({key: value})


def remove(key: str) -> Callable[[dict, dict], None]:
    return lambda tensors, description: (tensors.pop(key), description.pop(key)) and None


Q = "blocks.0.attn.to_k"
CONTRADICTIONS = {
    "no tensor": (drop(f"{Q}.deq_scale"), f"{Q}.deq_scale: described, but there is no such tensor"),
    "no key": (lambda t, d: t.update(extra=torch.zeros(1)), "extra: a tensor that the description does not have"),
    "unknown type": (tag(f"{Q}.weight", "W4A4"), f"{Q}.weight: unknown type 'W4A4'"),
    "other model type": (
        tag("model_quant_type", "W8A8_DYNAMIC"),
        "model_quant_type is 'W8A8_DYNAMIC'; only W8A8 is read",
    ),
    "part missing": (remove(f"{Q}.input_scale"), f"{Q}: lacks input_scale"),
    "part unknown": (
        lambda t, d: (t.update({f"{Q}.zero": t[f"{Q}.bias"].clone()}), d.update({f"{Q}.zero": "W8A8"})) and None,
        f"{Q}: has unknown zero",
    ),
    "dtype": (put(f"{Q}.weight", torch.Tensor.float), rf"{Q}.weight: float32 \[32, 32\], must be int8 \[32, 32\]"),
    "deq dtype": (
        put(f"{Q}.deq_scale", torch.Tensor.half),
        rf"{Q}.deq_scale: float16 \[32\], must be float32 or int64",
    ),
    "mixed dtypes": (put(f"{Q}.weight_scale", torch.Tensor.float), f"{Q}.weight_scale: float32 .*must be bfloat16"),
    "shape": (put(f"{Q}.quant_bias", lambda x: x[:5]), rf"{Q}.quant_bias: int32 \[5\], must be int32 \[32\]"),
    "flat weight": (put(f"{Q}.weight", torch.Tensor.flatten), f"{Q}: weight is not a matrix"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_contradictions_are_refused_by_name(tmp_path: Path, made: tuple, what: str) -> None:
    spoil, message = CONTRADICTIONS[what]
    tensors, description = made
    spoil(tensors, description)
    with pytest.raises(ValueError, match=message):
        export.save(tmp_path, tensors, description)
    assert not list(tmp_path.iterdir())
    # and the same where the files were written by somebody else
    export.save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / JSON).write_text(json.dumps(description))
    if description["model_quant_type"] == "W8A8":
        with pytest.raises(ValueError, match=message):
            export.load(tmp_path)
    else:
        with pytest.raises(FileNotFoundError, match="quant_model_weight_w8a8_dynamic.safetensors"):
            export.load(tmp_path)


def test_tensors_are_mapped_not_read(tmp_path: Path) -> None:
    """Loading 64 MB costs almost no anonymous memory; the pages belong to the file."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")

    def anonymous() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("RssAnon"))

    tensors = {"big": torch.ones(2**26, dtype=torch.int8)}
    export.save(tmp_path, tensors, {"model_quant_type": "W8A8", "big": "FLOAT"})
    del tensors
    before = anonymous()
    loaded, _ = export.load(tmp_path)
    assert int(loaded["big"].sum()) == 2**26
    assert anonymous() - before < 16 * 1024
