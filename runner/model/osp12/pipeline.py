"""Text to video with Open-Sora-Plan v1.2: encode the prompt, denoise a latent video under guidance, decode it."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from ..caption import clean_caption as clean
from ..caption import normalize_caption
from ..pipeline import VideoPipeline
from ..text import Text, check_choice, encode_texts, given_text
from .inputs import Size, common_length, full_size
from .transformer import OSP12Transformer
from .vae import OSP12VAE

OUTPUT_TYPES = ("latent", "np", "pt")
GUIDANCE_BATCHES = ("joint", "separate")


@dataclass
class OSP12PipelineOutput(BaseOutput):
    """`frames`: "np" uint8 array [B,T,H,W,3]; "pt" tensor [B,T,3,H,W] in [0,1]; "latent" tensor [B,4,t,h,w]."""

    frames: np.ndarray | torch.Tensor


class OSP12Pipeline(VideoPipeline):
    """Open-Sora-Plan v1.2 from prompt to video. Prompt templates are the caller's affair; captions are cleaned here."""

    vae: OSP12VAE
    transformer: OSP12Transformer
    scheduler: Any  # the schedulers share methods, no type that has them

    @torch.no_grad()
    def encode_prompt(
        self, prompt: str | Sequence[str], max_sequence_length: int = 512, clean_caption: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [B,L,D] in the text encoder's dtype and mask [B,L] (int64, 1 keeps) of one or B prompts.

        L is max_sequence_length: shorter prompts are padded (the mask drops the padding's embeddings), longer ones are
        cut with a warning. Raises ValueError if the pipeline has no text encoder.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("this pipeline has no text encoder; pass prompt_embeds and negative_prompt_embeds")
        prepare = clean if clean_caption else normalize_caption
        texts = [prepare(text) for text in ([prompt] if isinstance(prompt, str) else prompt)]
        return encode_texts(texts, self.text_encoder, self.tokenizer, max_sequence_length, self._execution_device)

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Video [B,3,T,H,W] in [0,1] of latents [B,4,t,h,w], in the VAE's dtype."""
        video = self.vae.decode(latents.to(self.vae.dtype) / self.vae.scaling_factor)
        return (video / 2.0 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        timesteps: Sequence[float] | None = None,
        max_sequence_length: int = 512,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "np",
        guidance_batch: str = "joint",
        clean_caption: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> OSP12PipelineOutput | tuple[np.ndarray | torch.Tensor]:
        """Generate one video for each prompt.

        prompt, negative_prompt: text, or embeddings ([B,L,D] or [B,1,L,D]) with their mask ([B,L] or [B,1,L], 1 keeps).
            A single negative prompt serves all prompts; without any it is "".
        num_frames, height, width: 4n+1 frames of multiples of 16 pixels; by default the size of `latents`, else the one
            that the transformer was trained for.
        timesteps: a descending list in place of num_inference_steps, for schedulers that take one.
        generator: a list gives each prompt of a batch the noise that it would have alone.
        latents: noise of unit variance [B,4,t,h,w], instead of drawing it.
        guidance_scale: w of classifier-free guidance (arXiv 2207.12598); at 1 and below there is none.
        guidance_batch: "joint" runs both branches in one batch, the negative first; "separate" one after the other.
        callback_on_step_end: called after each model evaluation as (pipeline, index, timestep, tensors), tensors being
            those of callback_on_step_end_tensor_inputs ("latents", "noise_pred"); may return a dict with other latents.
        output_type: "np", "pt" or "latent", see OSP12PipelineOutput.

        Raises ValueError, before anything is computed, on arguments that do not fit together.
        """
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_choice("guidance_batch", guidance_batch, GUIDANCE_BATCHES)
        for name in callback_on_step_end_tensor_inputs:
            check_choice("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        texts = [given_text("prompt", prompt, prompt_embeds, prompt_attention_mask)]
        batch, guided = len(texts[0]), guidance_scale > 1.0
        if guided:
            words = "" if negative_prompt is None and negative_prompt_embeds is None else negative_prompt
            negative = given_text(
                "negative_prompt", words, negative_prompt_embeds, negative_prompt_attention_mask, batch
            )
            texts.insert(0, negative)
        if isinstance(generator, list) and len(generator) != batch:
            raise ValueError(f"{len(generator)} generators were given for {batch} prompts")
        length = common_length(texts, max_sequence_length)
        size = full_size(num_frames, height, width, latents, self.transformer.config, batch)

        device, dtype = self._execution_device, self.transformer.dtype
        branches = [self._condition(text, length, clean_caption, batch, device, dtype) for text in texts]
        if guidance_batch == "joint":
            branches = [(torch.cat([embeds for embeds, _ in branches]), torch.cat([mask for _, mask in branches]))]

        schedule = self._set_timesteps(num_inference_steps, timesteps, device)
        latents = self._noise(size, generator, latents, device, dtype)
        options = {"generator": generator} if "generator" in inspect.signature(self.scheduler.step).parameters else {}
        for index, timestep in enumerate(self.progress_bar(schedule)):
            noise_pred = self._predict(latents, timestep, branches)
            if guided:
                unconditional, conditional = noise_pred.chunk(2)
                noise_pred = unconditional + guidance_scale * (conditional - unconditional)
            if self.transformer.out_channels == 2 * latents.shape[1]:  # the rest is a learned variance
                noise_pred = noise_pred.chunk(2, dim=1)[0]
            latents = self.scheduler.step(noise_pred, timestep, latents, **options, return_dict=False)[0].to(dtype)
            if callback_on_step_end is not None:
                tensors = {"latents": latents, "noise_pred": noise_pred}
                given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                latents = (callback_on_step_end(self, index, timestep, given) or {}).get("latents", latents)

        frames = self._output(latents, output_type)
        self.maybe_free_model_hooks()
        return OSP12PipelineOutput(frames=frames) if return_dict else (frames,)

    def _condition(
        self, text: Text, length: int, clean_caption: bool, batch: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [B,1,L,D] and mask [B,1,L] of a text, as the transformer takes them."""
        embeds, mask = text.embeds, text.mask
        if embeds is None or mask is None:
            embeds, mask = self.encode_prompt(text.prompts, length, clean_caption)
        embeds = embeds.reshape(len(text), 1, length, -1).to(device, dtype)
        mask = mask.reshape(len(text), 1, length).to(device)
        return embeds.expand(batch, -1, -1, -1), mask.expand(batch, -1, -1)

    def _predict(
        self, latents: torch.Tensor, timestep: Any, branches: Sequence[tuple[torch.Tensor, ...]]
    ) -> torch.Tensor:
        """The model's output for each branch, stacked along the batch. No latent is masked: attention_mask is None."""
        inputs = self.scheduler.scale_model_input(latents, timestep)
        outputs = []
        for embeds, mask in branches:
            repeated = torch.cat([inputs] * (len(embeds) // len(inputs)))
            outputs.append(
                self.transformer(
                    hidden_states=repeated,
                    timestep=torch.as_tensor(timestep, device=inputs.device).expand(len(repeated)),
                    encoder_hidden_states=embeds,
                    attention_mask=None,
                    encoder_attention_mask=mask,
                    return_dict=False,
                )[0]
            )
        return torch.cat(outputs)

    def _set_timesteps(self, steps: int, timesteps: Sequence[float] | None, device: torch.device) -> torch.Tensor:
        if timesteps is None:
            self.scheduler.set_timesteps(steps, device=device)
        elif "timesteps" in inspect.signature(self.scheduler.set_timesteps).parameters:
            self.scheduler.set_timesteps(timesteps=list(timesteps), device=device)
        else:
            raise ValueError(f"{type(self.scheduler).__name__} takes no list of timesteps; pass num_inference_steps")
        return self.scheduler.timesteps

    def _noise(
        self,
        size: Size,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Latents at the scheduler's first noise level, from noise that is drawn or given."""
        if latents is None:
            latents = randn_tensor(tuple(size), generator=generator, device=device, dtype=dtype)
        return latents.to(device, dtype) * self.scheduler.init_noise_sigma

    def _output(self, latents: torch.Tensor, output_type: str) -> np.ndarray | torch.Tensor:
        if output_type == "latent":
            return latents
        video = self.decode_latents(latents).transpose(1, 2)
        if output_type == "pt":
            return video
        return (video * 255).to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()  # truncated, as in the reference
