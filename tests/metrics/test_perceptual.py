import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runner.metrics import Clip, compare
from runner.metrics.perceptual import ClipScore, Lpips, _alexnet

# What the `lpips` package (0.1.4) gives for the weights and clips below: the tests need neither it nor torchvision.
LPIPS_OF_THE_PACKAGE = 3.671179001685232e-05


def waves(shape: tuple[int, ...], pace: float, scale: float) -> Tensor:
    return scale * torch.sin(pace * torch.arange(math.prod(shape), dtype=torch.float64)).view(shape)


def lpips_folder(folder: Path) -> Path:
    """AlexNet and channel weights by formula: a stand-in for the published files, in their layout."""
    trunk = {
        f"features.{key}": waves(tuple(value.shape), 0.37 + 0.01 * len(key), math.sqrt(6 / value[0].numel())).float()
        for key, value in _alexnet().state_dict().items()
    }
    trunk["classifier.6.bias"] = torch.zeros(1000)
    linear = {
        f"lin{level}.model.1.weight": (1 + waves((1, width, 1, 1), 0.7, 0.9)).float() / 10
        for level, width in enumerate((64, 192, 384, 256, 256))
    }
    torch.save(trunk, folder / "alexnet.pth")
    torch.save(linear, folder / "lpips_alex.pth")
    return folder


def two_clips() -> tuple[Tensor, Tensor]:
    a = 128 + waves((2, 64, 72, 3), 0.011, 100)
    return a.to(torch.uint8), (a + waves((2, 64, 72, 3), 1.3, 25)).to(torch.uint8)


def test_lpips_is_that_of_the_package(tmp_path: Path) -> None:
    distance = Lpips(lpips_folder(tmp_path))
    a, b = two_clips()
    assert distance(a, b) == pytest.approx(LPIPS_OF_THE_PACKAGE, rel=1e-5)
    assert distance(a, a) == 0.0
    assert distance(a.numpy(), b.numpy()) == distance(a, b)


def test_lpips_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"alexnet\.pth.*neither is downloaded"):
        Lpips(tmp_path)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP, small enough to make in a moment, with a tokenizer of its own."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("clip")
    words = {word: i for i, word in enumerate("<pad> <start> <end> <unk> a red blue circle square moving left".split())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": len(words), "max_position_embeddings": 8, "eos_token_id": 2},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def test_clip_score_is_the_cosine_of_the_model(clip_folder: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    score = ClipScore(clip_folder)
    frames = torch.randint(0, 256, (1, 32, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    ids = AutoTokenizer.from_pretrained(str(clip_folder))(["a red circle"], return_tensors="pt")["input_ids"]
    values = frames.permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    values = (values - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)
    with torch.no_grad():
        output = CLIPModel.from_pretrained(str(clip_folder)).eval()(input_ids=ids, pixel_values=values)
    cosine = float((output.text_embeds * output.image_embeds).sum())
    assert score(frames, "a red circle") == pytest.approx(100 * max(cosine, 0), abs=1e-4)


def test_clip_score_takes_any_size_and_long_captions(clip_folder: Path) -> None:
    score = ClipScore(clip_folder)
    frames = torch.randint(0, 256, (3, 50, 77, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    each = [score(frames[i : i + 1], "a blue square " * 20) for i in range(3)]
    assert score(frames, "a blue square " * 20) == pytest.approx(sum(each) / 3)
    assert all(0 <= value <= 100 for value in each)


def test_both_have_their_place_in_the_metrics(tmp_path: Path, clip_folder: Path) -> None:
    a, b = two_clips()
    prompts = [{"index": 0, "prompt": "a red circle"}]
    distance, score = Lpips(lpips_folder(tmp_path)), ClipScore(clip_folder)
    row = compare([Clip(a)], [Clip(b)], prompts, distance=distance, clip_score=score)["prompts"][0]
    assert row["lpips"] == distance(a, b)
    assert (row["clip_float"], row["clip_quantized"]) == (score(a, "a red circle"), score(b, "a red circle"))
    json.dumps(row, allow_nan=False)


def test_clip_score_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no CLIP folder"):
        ClipScore(tmp_path)
