"""What the video pipelines of this project have in common: their parts, and where those are looked up again."""

from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import by_room


class VideoPipeline(DiffusionPipeline):
    """A text encoder, which may be absent where embeddings are given, a transformer, a solver and an autoencoder."""

    text_encoder: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None

    model_cpu_offload_seq = "text_encoder->transformer->vae"  # type: ignore[assignment]  # None in DiffusionPipeline
    _optional_components = ["text_encoder", "tokenizer"]
    _callback_tensor_inputs = ["latents", "noise_pred"]

    def __init__(
        self,
        vae: Any,
        text_encoder: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        transformer: Any,
        scheduler: Any,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer, scheduler=scheduler
        )

    def register_to_config(self, **config: Any) -> None:
        """Name this project's components by their room, where from_pretrained can look them up after a module moved."""
        super().register_to_config(**by_room(type(self).__module__, config))
