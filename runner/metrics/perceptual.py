"""LPIPS and CLIP score from weights in local folders: the optional extra `perceptual`. Nothing is ever downloaded.

Both take clips as uint8 [T, H, W, 3] and look at one frame at a time, so a clip's figure is the mean over its frames.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ALEXNET = "alexnet.pth"
LINEAR = "lpips_alex.pth"
# The ImageNet statistics of the network, carried over to inputs in [-1, 1] as in the LPIPS release.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class Lpips:
    """Learned perceptual distance over AlexNet, version 0.1; 0 for equal clips, larger is worse.

    Zhang, Isola, Efros, Shechtman, Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"
    (2018), equation 1. `folder` holds `alexnet.pth` (the ImageNet weights as torchvision publishes them:
    alexnet-owt-*.pth) and `lpips_alex.pth` (the learned channel weights: weights/v0.1/alex.pth of the `lpips`
    package). Raises FileNotFoundError that names the missing file. Frames are at least 63 pixels a side.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        trunk, linear = (_load(Path(folder) / name) for name in (ALEXNET, LINEAR))
        network = _alexnet()
        network.load_state_dict({k.removeprefix("features."): v for k, v in trunk.items() if k.startswith("features.")})
        self.network = network.eval().requires_grad_(False).to(device)
        self.weights = [linear[f"lin{level}.model.1.weight"].float().to(device) for level in range(5)]
        self.device = device

    @torch.no_grad()
    def __call__(self, reference: Any, frames: Any) -> float:
        values = [self._distance(x, y) for x, y in zip(_clip(reference), _clip(frames), strict=True)]
        return math.fsum(values) / len(values)

    def _distance(self, x: Tensor, y: Tensor) -> float:
        images = torch.stack([x, y]).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = (images - _channels(SHIFT, images)) / _channels(SCALE, images)
        total, level = 0.0, 0
        for layer in self.network:
            features = layer(features)
            if isinstance(layer, nn.ReLU):
                unit = features / (features.norm(dim=1, keepdim=True) + 1e-10)
                total += float(functional.conv2d((unit[:1] - unit[1:]) ** 2, self.weights[level]).mean())
                level += 1
        return total


class ClipScore:
    """How well frames fit a caption, 0 to 100: the mean over frames of 100 max(cos(image, text), 0).

    Hessel, Holtzman, Forbes, Le Bras, Choi, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning"
    (2021), with the weight 100 that most tools use instead of the paper's 2.5. `folder` is a CLIP model in
    transformers' layout with its tokenizer.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} is no CLIP folder (it has no config.json): save a model and its tokenizer there with "
                "transformers' save_pretrained"
            )
        try:
            from transformers import AutoTokenizer, CLIPModel
        except ImportError as error:
            raise ImportError("the CLIP score needs transformers: pip install 'dit-runner[perceptual]'") from error
        model = CLIPModel.from_pretrained(str(folder), local_files_only=True)
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self.device = device

    @torch.no_grad()
    def __call__(self, frames: Any, caption: str) -> float:
        longest = self.model.config.text_config.max_position_embeddings
        text = self.tokenizer([caption], return_tensors="pt", truncation=True, max_length=longest).to(self.device)
        pooled = self.model.text_model(input_ids=text["input_ids"], attention_mask=text["attention_mask"]).pooler_output
        caption_direction = functional.normalize(self.model.text_projection(pooled), dim=-1)
        values = []
        for frame in _clip(frames):
            pooled = self.model.vision_model(pixel_values=self._pixels(frame)).pooler_output
            image_direction = functional.normalize(self.model.visual_projection(pooled), dim=-1)
            values.append(100 * max(float((image_direction * caption_direction).sum()), 0.0))
        return math.fsum(values) / len(values)

    def _pixels(self, frame: Tensor) -> Tensor:
        """CLIP's own preparation: shortest side to the model's size (antialiased bicubic), center crop, its channel
        statistics."""
        size = int(self.model.config.vision_config.image_size)
        image = frame.to(self.device).permute(2, 0, 1).unsqueeze(0).float() / 255
        height, width = image.shape[-2:]
        ratio = size / min(height, width)
        shape = (max(size, round(height * ratio)), max(size, round(width * ratio)))
        image = functional.interpolate(image, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        image = image[..., top : top + size, left : left + size]
        mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        return (image - _channels(mean, image)) / _channels(deviation, image)


def _load(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"LPIPS needs {path.name} in {path.parent}: {ALEXNET} holds torchvision's ImageNet AlexNet, {LINEAR} the "
            "channel weights of the `lpips` package (its file weights/v0.1/alex.pth); neither is downloaded for you"
        )
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _alexnet() -> nn.Sequential:
    """The convolutional part of AlexNet up to the last tap of LPIPS (Krizhevsky, "One weird trick", 2014),
    torchvision's numbering."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


def _clip(frames: Any) -> Tensor:
    clip = torch.as_tensor(frames)
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
        raise ValueError(f"a clip is uint8 [T, H, W, 3]; this one is {clip.dtype} {list(clip.shape)}")
    return clip


def _channels(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)
