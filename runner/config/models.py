"""The model section of each architecture: what its keys mean and may be. What they are by default stands in conf/model.

A key whose name is an argument of the architecture's pipeline is handed to it by that name.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


def finite(value: Any) -> Any:
    """Refuse infinity and what is not a number, in lists and mappings of any depth too."""
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite_number", "expected a finite number")
    for inner in within:
        finite(inner)
    return value


Text = Annotated[str, Field(min_length=1)]
NAME = "the architecture: a folder of runner/model"


class Section(BaseModel):
    """A strict section: no key may be missing, none may be new, "1" is no number, and infinity is none either."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,  # what checks a section is then made once, within the whole
    )


class Model(Section):
    """What every architecture has."""

    name: str = Field(description=NAME)
    checkpoint: Text = Field(description="the weights: a folder, for some models a hub id or embedded")
    revision: Text | None = Field(description="revision of a hub id; a checkpoint is taken for a hub id only with one")
    dtype: Literal["bf16", "fp16", "fp32"] = Field(
        description="what the weights and an export are in; hardware.compute says what is computed in"
    )
    batch_size: int = Field(ge=1, description="prompts generated at once")
    keep_float: list[Text] = Field(description="linears that are known to suffer from quantization, as name patterns")


class OpenSora(Model):
    """What the two Open-Sora have in common."""

    cache_dir: Text | None = Field(description="folder for what is downloaded from the hub")
    text_encoder: Text | None = Field(
        description="folder or hub id; null: text_encoder in the checkpoint or beside it, else the released one"
    )
    fps: int = Field(ge=1, le=240, description="frames a second of the saved videos")
    max_sequence_length: int = Field(ge=1, description="tokens of a prompt; more are cut off")
    clean_caption: bool = Field(description="clean prompts the way that the training captions were cleaned")


class OSP12(OpenSora):
    """Open-Sora-Plan v1.2."""

    name: Literal["osp12"] = Field(description=NAME)
    ae: Text = Field(description="which autoencoder the latents belong to")
    vae: Text | None = Field(description="folder of the autoencoder; null: vae in the checkpoint or beside it")
    model_type: Text = Field(description="dit, the only type there is")
    num_frames: int = Field(ge=1, description="frames of a clip")
    height: int = Field(ge=16, description="pixels")
    width: int = Field(ge=16, description="pixels")
    template: Text = Field(description="what is put around a prompt: plain, unwatermarked, or your own with {}")
    negative_prompt: str = Field(description="what guidance leads away from")
    enable_tiling: bool = Field(description="decode in tiles, so that memory does not grow with the clip")
    tile_overlap_factor: float = Field(ge=0, lt=1, description="share of a tile that it has in common with the next")
    save_memory: bool = Field(description="smaller tiles: less memory, more time")


class OpenSora12(OpenSora):
    """Open-Sora 1.2."""

    name: Literal["opensora12"] = Field(description=NAME)
    vae2d: Text | None = Field(
        description="folder of the 2D autoencoder, of which only the config counts: vae3d has its trained weights; "
        "null: what vae3d names, if it is there, else the released config"
    )
    vae3d: Text | None = Field(
        description="folder of the whole autoencoder; null: vae3d in the checkpoint or beside it"
    )
    checkpoint_pin: Text | None = Field(description="commit of the hub that the guide's checkpoint is of")
    text_encoder_pin: Text | None = Field(description="commit of the hub that the guide's text encoder is of")
    vae2d_pin: Text | None = Field(description="commit of the hub that the guide's 2D autoencoder is of")
    vae3d_pin: Text | None = Field(description="commit of the hub that the guide's autoencoder is of")
    num_frames: int | str = Field(description='frames of a clip, or a length: "2s" to "32s", "1x" to "16x"; 1: a still')
    tables: Literal["upstream", "enflame"] = Field(
        description="whose sizes and lengths: enflame's 2s are 40 frames, not 51, and its square 720p is 720x720"
    )
    resolution: Text = Field(description="about how many pixels, by name: 144p to 4k; height and width win over it")
    aspect_ratio: Text = Field(description="height to width, so that 9:16 is landscape")
    height: int | None = Field(ge=16, description="pixels; null: by resolution and aspect_ratio")
    width: int | None = Field(ge=16, description="pixels; null: by resolution and aspect_ratio")
    aes: float | None = Field(description="aesthetic score that prompts ask for, 4 to 7; null: none")
    flow: float | None = Field(description="motion score that prompts ask for, about 0 to 20; null: none")
    camera_motion: Text | None = Field(description="camera motion that prompts ask for, pan left or the like")
    loop: int = Field(ge=1, description="clips that go on from one another, joined to one video")
    condition_frame_length: int = Field(
        ge=5, multiple_of=5, description="latent frames of a clip that the next one begins with; 5 are 17 frames"
    )
    condition_frame_edit: float = Field(ge=0, le=1, description="how much of these is made anew; 0 keeps them")
    align: int | None = Field(ge=1, description="mask strategies start at multiples of so many latent frames")
    micro_batch_size: int = Field(ge=1, description="frames that the 2D autoencoder takes at once")
    micro_frame_size: int = Field(ge=4, description="frames that the autoencoder takes at once, each apart")


class Foreign(Model):
    """A pipeline that diffusers has: what its call does not get is as the pipeline has it."""

    template: Text = Field(description="what is put around a prompt, with {} where it goes")
    height: int | None = Field(ge=1, description="pixels; null: as the pipeline has it")
    width: int | None = Field(ge=1, description="pixels; null: as the pipeline has it")
    max_sequence_length: int | None = Field(ge=1, description="tokens of a prompt; null: as the pipeline has it")
    negative_prompt: str | None = Field(description="what guidance leads away from; null: as the pipeline has it")
    call: dict[str, Annotated[Any, AfterValidator(finite)]] = Field(
        description="further arguments of the pipeline's call, by name"
    )
    blocks: list[Text] | None = Field(
        min_length=1, description="the transformer's lists of blocks, in the order in which they run; null: found"
    )
    enable_tiling: bool = Field(description="decode in tiles, so that memory does not grow with the clip")


class SD3(Foreign):
    """Stable Diffusion 3."""

    name: Literal["sd3"] = Field(description=NAME)
    text_encoder_3: bool = Field(description="use the third text encoder, where the checkpoint has it")


class Diffusers(Foreign):
    """Any text-to-image or text-to-video pipeline of diffusers that has a transformer."""

    name: Literal["diffusers"] = Field(description=NAME)
    num_frames: int | None = Field(ge=1, description="frames of a clip; null: as the pipeline has it")
    fps: int = Field(ge=1, le=240, description="frames a second of the saved videos")
