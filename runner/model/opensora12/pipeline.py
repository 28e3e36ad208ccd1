"""Text and references to video with Open-Sora 1.2: several loops of denoising, each going on from the one before."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from ..pipeline import VideoPipeline
from ..text import check_choice, encode_texts, given_text
from .masks import ALIGN, apply_mask_strategy, parse_mask_strategy, strategy_text
from .prompts import extract_json, prepare_prompt, prompt_of_loop
from .references import Reference, read_references
from .sampling import Guidance, denoise
from .scheduler import RFlowScheduler
from .sizes import dframe_to_frame, frame_count, image_size
from .transformer import OpenSora12Transformer
from .vae import OpenSora12VAE

OUTPUT_TYPES = ("latent", "np", "pt")
GUIDANCE_BATCHES = ("joint", "separate")
IMAGE_FPS = 120  # what a still is told instead of frames a second

Generators = Generator | list[Generator] | None


@dataclass
class OpenSora12PipelineOutput(BaseOutput):
    """`frames`: "np" uint8 array [B,T,H,W,3]; "pt" tensor [B,T,3,H,W] in [0,1]; "latent" the last loop's latents
    [B,4,t,h,w]. H and W are multiples of 8: what a size has beyond that is cut off."""

    frames: np.ndarray | Tensor


class OpenSora12Pipeline(VideoPipeline):
    """Open-Sora 1.2 from prompt and references to video."""

    vae: OpenSora12VAE
    transformer: OpenSora12Transformer
    scheduler: RFlowScheduler

    @torch.no_grad()
    def encode_prompt(self, prompt: Sequence[str], max_sequence_length: int = 300) -> tuple[Tensor, Tensor]:
        """Embeddings [B,L,D] in the text encoder's dtype and mask [B,L] of prompts that are ready (see prepare_prompt).

        Raises ValueError if the pipeline has no text encoder.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("this pipeline has no text encoder; pass prompt_embeds")
        return encode_texts(prompt, self.text_encoder, self.tokenizer, max_sequence_length, self._execution_device)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        num_frames: int | str = 51,
        height: int | None = None,
        width: int | None = None,
        resolution: str = "240p",
        aspect_ratio: str = "9:16",
        tables: str = "upstream",
        fps: float = 24,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.0,
        timesteps: Sequence[float] | None = None,
        aes: float | None = 6.5,
        flow: float | None = None,
        camera_motion: str | None = None,
        reference_path: str | Sequence[str | Sequence[Reference] | None] | None = None,
        mask_strategy: str | Sequence[str | Sequence[Mapping[str, Any]] | None] | None = None,
        loop: int = 1,
        condition_frame_length: int = 5,
        condition_frame_edit: float = 0.0,
        align: int | None = ALIGN,
        max_sequence_length: int = 300,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        output_type: str = "np",
        guidance_batch: str = "joint",
        clean_caption: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> OpenSora12PipelineOutput | tuple[np.ndarray | Tensor]:
        """Generate one video for each prompt.

        prompt: words, with scores, parts for the loops and JSON as in prompts.py; or prompt_embeds ([B,L,D] or
            [B,1,L,D]) with their mask ([B,L] or [B,1,L]) for all loops.
        num_frames: a number or a length of the tables ("2s"); 1 is a still. height, width: any number of pixels from 16
            on; both None: by resolution and aspect_ratio (height:width). tables: "upstream" or "enflame" (2s is 40).
        aes, flow, camera_motion: scores that are put to each part of a prompt that has none of its own.
        reference_path: for each prompt paths joined by ";", or a list of paths and tensors in [-1, 1]; what a prompt's
            JSON says comes before it. mask_strategy: for each prompt, in the released syntax or as mappings (masks.py).
        loop: how many clips, each of num_frames; each goes on from the last condition_frame_length latent frames
            (multiples of 5) of the one before, with condition_frame_edit (0 keeps them).
        align: mask strategies start at multiples of so many latent frames; None: anywhere.
        timesteps: a descending list in place of num_inference_steps. latents: noise [B,4,t,h,w] of the first loop.
        generator: a list gives each prompt of a batch the noise that it would have alone.
        guidance_scale: w of classifier-free guidance; at 1 and below there is none. guidance_batch: "joint" runs both
            branches in one batch, "separate" one after the other, the one without text first.
        callback_on_step_end: called after each model evaluation as (pipeline, index, timestep, tensors), tensors being
            those of callback_on_step_end_tensor_inputs ("latents", "noise_pred"); may return a dict with other latents.
            The index counts on over the loops.

        Raises ValueError, before anything is computed, on arguments that do not fit together.
        """
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_choice("guidance_batch", guidance_batch, GUIDANCE_BATCHES)
        for name in callback_on_step_end_tensor_inputs:
            check_choice("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        text = given_text("prompt", prompt, prompt_embeds, prompt_attention_mask)
        batch = len(text)
        words, said_references, said_strategies = extract_json(text.prompts)
        words = [prepare_prompt(each, aes, flow, camera_motion, clean_caption) for each in words]
        given_references = _each("reference_path", reference_path, batch)
        given_strategies = [strategy_text(each) for each in _each("mask_strategy", mask_strategy, batch)]
        wanted = [a or b for a, b in zip(said_references or [""] * batch, given_references, strict=True)]
        strategies = [a or b for a, b in zip(said_strategies or [""] * batch, given_strategies, strict=True)]
        frames = frame_count(num_frames, tables)
        if height is None and width is None:
            height, width = image_size(resolution, aspect_ratio, tables)
        if height is None or width is None or min(height, width) < 16:
            raise ValueError(f"height and width are {height} and {width}; give both, of 16 pixels or more, or neither")
        if isinstance(generator, list) and len(generator) != batch:
            raise ValueError(f"{len(generator)} generators were given for {batch} prompts")
        shape = (batch, self.transformer.in_channels, *self.vae.latent_size(frames, height, width))
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents is {list(latents.shape)}; expected {list(shape)}")
        if loop < 1 or (loop > 1 and not 0 < condition_frame_length <= shape[2]):
            raise ValueError(
                f"loop is {loop} and condition_frame_length {condition_frame_length} of {shape[2]} latents"
            )
        skipped = dframe_to_frame(condition_frame_length) if loop > 1 else 0
        pixels = [read_references(each or None, height, width) for each in wanted]
        _check_references(strategies, [len(each) for each in pixels], loop)

        device = self._execution_device
        references = [
            [self._latents(clip[None], self._generator(generator, row)) for clip in clips]
            for row, clips in enumerate(pixels)
        ]
        sides = {"fps": IMAGE_FPS if frames == 1 else fps, "height": height, "width": width}
        size = {name: torch.tensor([float(value)], device=device) for name, value in sides.items()}
        self._set_timesteps(num_inference_steps, timesteps, device, height, width, frames, loop)
        steps = len(self.scheduler.timesteps) // loop
        progress = self.progress_bar(total=steps * loop)

        clips: list[Tensor] = []
        z = torch.zeros(0)
        for turn in range(loop):
            if turn:
                for row in range(batch):
                    references[row].append(self._latents(clips[-1][row : row + 1], self._generator(generator, row)))
                    entry = f"{turn},{len(references[row]) - 1},-{condition_frame_length},0,{condition_frame_length}"
                    strategies[row] += f"{';' if strategies[row] else ''}{entry},{condition_frame_edit}"
            if text.embeds is None:
                said = [prompt_of_loop(each, turn) for each in words]
                embeds, mask = self.encode_prompt(said, max_sequence_length)
            else:
                assert text.mask is not None  # given_text demands it
                embeds, mask = text.embeds.reshape(batch, -1, text.embeds.shape[-1]), text.mask.reshape(batch, -1)
            velocity = self._guidance(embeds, mask, size, guidance_scale, guidance_batch)
            noise = latents if turn == 0 and latents is not None else self._noise(shape, generator)
            # Without a frame that is given the mask has no effect but the cost of a second modulation.
            given = strategies if any(parse_mask_strategy(strategy) for strategy in strategies) else None
            z, frame_mask = apply_mask_strategy(noise.to(device, torch.float32), references, given, turn, align)

            def on_step(index: int, timestep: Tensor, z: Tensor, v: Tensor, first: int = turn * steps) -> Tensor:
                progress.update()
                if callback_on_step_end is None:
                    return z
                tensors = {"latents": z, "noise_pred": v}
                chosen = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                return (callback_on_step_end(self, first + index, timestep, chosen) or {}).get("latents", z)

            z = denoise(
                self.scheduler,
                velocity,
                z,
                frame_mask,
                lambda index: self._noise(shape, generator).to(device, torch.float32),
                on_step,
                slice(turn * steps, (turn + 1) * steps),
            )
            if output_type != "latent" or turn + 1 < loop:
                clips.append(self.decode_latents(z, frames))
        progress.close()

        output: np.ndarray | Tensor = z
        if output_type != "latent":
            video = torch.cat([clip[:, :, skipped if turn else 0 :] for turn, clip in enumerate(clips)], dim=2)
            output = _finish(video, output_type)
        self.maybe_free_model_hooks()
        return OpenSora12PipelineOutput(frames=output) if return_dict else (output,)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor, num_frames: int) -> Tensor:
        """Video [B,3,num_frames,H,W] of latents, in the VAE's dtype: near [-1, 1], not clamped."""
        return self.vae.decode(latents, num_frames)

    def _latents(self, video: Tensor, generator: Generator | None) -> Tensor:
        """Latents [4,t,h,w] of one reference [1,3,T,H,W]."""
        return self.vae.encode(video.to(self._execution_device), generator)[0]

    def _guidance(
        self, embeds: Tensor, mask: Tensor, size: dict[str, Tensor], scale: float, guidance_batch: str
    ) -> Guidance:
        """Text as the transformer takes it. Tokens that no prompt of the batch has are cut off: they have no effect."""
        device, dtype = self._execution_device, self.transformer.dtype
        nothing = self.transformer.y_embedder.y_embedding
        if embeds.shape[1] > len(nothing):
            raise ValueError(f"the text is {embeds.shape[1]} tokens long, the model takes {len(nothing)} at most")
        length = max(int(mask.sum(dim=1).max()), 1) if bool((mask.diff(dim=1) <= 0).all()) else mask.shape[1]
        return Guidance(
            self.transformer,
            embeds[:, None, :length].to(device, dtype),
            mask[:, :length].to(device),
            nothing[:length].to(device, dtype),
            size,
            max(scale, 1.0),
            guidance_batch == "joint",
        )

    def _set_timesteps(
        self,
        steps: int,
        timesteps: Sequence[float] | None,
        device: torch.device,
        height: int,
        width: int,
        frames: int,
        loop: int,
    ) -> None:
        size = {"height": height, "width": width, "num_frames": frames}
        given = {"timesteps": timesteps} if timesteps is not None else {"num_inference_steps": steps, **size}
        self.scheduler.set_timesteps(**given, device=device, loops=loop)

    def _noise(self, shape: tuple[int, ...], generator: Generators) -> Tensor:
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)

    @staticmethod
    def _generator(generator: Generators, row: int) -> Generator | None:
        return generator[row] if isinstance(generator, list) else generator


def _each(name: str, value: Any, batch: int) -> list[Any]:
    """One value for each prompt; a single text serves all."""
    if value is None or isinstance(value, str):
        return [value] * batch
    if len(value) != batch:
        raise ValueError(f"{name} has {len(value)} entries for {batch} prompts")
    return list(value)


def _check_references(strategies: Sequence[str], counts: Sequence[int], loops: int) -> None:
    """Raise ValueError for a strategy that asks for a reference that is not there; each loop adds one."""
    for strategy, count in zip(strategies, counts, strict=True):
        for loop, reference, *_ in parse_mask_strategy(strategy):
            if loop < loops and reference >= count + loop:
                raise ValueError(f"mask strategy {strategy!r} asks for reference {reference} of {count}")


def _finish(video: Tensor, output_type: str) -> np.ndarray | Tensor:
    """Video [B,3,T,H,W] near [-1,1] as it is given out."""
    video = (video.float().clamp(-1, 1) + 1).div(2).transpose(1, 2)
    if output_type == "pt":
        return video
    return (video * 255 + 0.5).to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()  # rounded, as in the reference
