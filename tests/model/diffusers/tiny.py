"""Tiny random pipelines of diffusers' own classes, saved as folders: tokenizers and text encoders too, no hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

WIDTH = 32  # of every text encoder
Build = Callable[[], Any]


def tokenizer(kind: str = "t5") -> transformers.PreTrainedTokenizerFast:
    """Every byte is a token; texts end, and for CLIP begin, with a token of their own."""
    special = {"t5": ["<pad>", "</s>", "<unk>"], "clip": ["<|startoftext|>", "<|endoftext|>", "<unk>"]}[kind]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    first = f"{special[0]} " if kind == "clip" else ""
    ends = [(token, vocabulary[token]) for token in special[:2]]
    made.post_processor = processors.TemplateProcessing(single=f"{first}$A {special[1]}", special_tokens=ends)
    names = {"pad_token": special[0] if kind == "t5" else special[1], "eos_token": special[1], "unk_token": "<unk>"}
    if kind == "clip":
        names["bos_token"] = special[0]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=77, **names)


def t5(width: int = WIDTH) -> transformers.T5EncoderModel:
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "vocab_size": 300}
    return transformers.T5EncoderModel(transformers.T5Config(**sizes, dropout_rate=0.0)).eval()


def clip(projection: bool = False) -> Any:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 77}
    config = transformers.CLIPTextConfig(**sizes, **ends, vocab_size=300, projection_dim=WIDTH)
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config).eval()


def llama() -> transformers.LlamaModel:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, vocab_size=300, bos_token_id=1, eos_token_id=1, pad_token_id=0)
    return transformers.LlamaModel(config).eval()


def image_vae(channels: int = 4, **more: Any) -> diffusers.AutoencoderKL:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": channels, "norm_num_groups": 4}
    return diffusers.AutoencoderKL(**blocks, **sizes, sample_size=32, **more)


def flow(**options: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def flux() -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    plain = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06, "scaling_factor": 1.5}
    return diffusers.FluxPipeline(
        flow(use_dynamic_shifting=True), image_vae(**plain), clip(), tokenizer("clip"), t5(), tokenizer(), transformer
    )


def sd3(third: bool = True) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=2 * WIDTH, caption_projection_dim=32, pooled_projection_dim=2 * WIDTH, out_channels=4,
    )  # fmt: skip
    plain = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06, "scaling_factor": 1.5}
    parts = {"text_encoder_3": t5(2 * WIDTH) if third else None, "tokenizer_3": tokenizer() if third else None}
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=flow(shift=3.0), vae=image_vae(**plain), text_encoder=clip(True),
        tokenizer=tokenizer("clip"), text_encoder_2=clip(True), tokenizer_2=tokenizer("clip"), **parts,
    )  # fmt: skip


def pixart() -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=WIDTH,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        use_additional_conditions=False,
    )  # fmt: skip
    solver = diffusers.DPMSolverMultistepScheduler()
    return diffusers.PixArtSigmaPipeline(tokenizer(), t5(), image_vae(), transformer, solver)


def wan() -> Any:
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=WIDTH, freq_dim=64, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32,
    )  # fmt: skip
    solver = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    return diffusers.WanPipeline(
        tokenizer=tokenizer(), text_encoder=t5(), vae=vae, scheduler=solver, transformer=transformer
    )


def cogvideox() -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=WIDTH, num_layers=2, sample_width=4, sample_height=4, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=32, use_rotary_positional_embeddings=True,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    solver = diffusers.CogVideoXDPMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    return diffusers.CogVideoXPipeline(tokenizer(), t5(), vae, transformer, solver)


def hunyuan() -> Any:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_single_layers=2,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo(
        in_channels=3, out_channels=3, latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        act_fn="silu", norm_num_groups=4, scaling_factor=0.476986, spatial_compression_ratio=8,
        temporal_compression_ratio=4, mid_block_add_attention=True,
    )  # fmt: skip
    return diffusers.HunyuanVideoPipeline(
        llama(), tokenizer(), transformer, vae, flow(shift=7.0), clip(), tokenizer("clip")
    )


def ltx() -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=2, caption_channels=WIDTH,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False), decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, timestep_conditioning=False, patch_size=1,
        patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    solver = flow(use_dynamic_shifting=True, shift_terminal=0.1)
    return diffusers.LTXPipeline(solver, vae, t5(), tokenizer(), transformer)


# By name: how it is made, and the keys of a small run beside those that the folder says.
PIPELINES: dict[str, tuple[Build, dict[str, Any]]] = {
    "flux": (flux, {"height": 16, "width": 16, "max_sequence_length": 16}),
    "pixart": (pixart, {"height": 16, "width": 16, "max_sequence_length": 16}),
    "wan": (wan, {"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16}),
    "cogvideox": (cogvideox, {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 32}),
    "hunyuan": (
        hunyuan,
        {"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16}
        | {"call": {"prompt_template": {"template": "{}", "crop_start": 0}}},
    ),
    "ltx": (ltx, {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16}),
    "sd3": (sd3, {"height": 32, "width": 32}),
}


def save(name: str, folder: Path) -> Path:
    """The folder of a pipeline by that name, made from seed 0."""
    torch.manual_seed(0)
    build, _ = PIPELINES[name]
    build().save_pretrained(folder / name)
    return folder / name


def spelled(value: Any) -> str:
    """A value as the command line has it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{spelled(inner)}" for key, inner in value.items()) + "}"
    return f"'{value}'" if value == "{}" else str(value)
