"""What each key of a run means and may be; what it is by default stands in conf/ alone.

One class a section of the configuration, named like its conf group. Rules that a key's own type cannot say (between
groups, about files, or of one model) are in config.py and in the model's rules.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

Text = Annotated[str, Field(min_length=1)]


def _prompts(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    if isinstance(value, list) and value and all(isinstance(prompt, str) and prompt.strip() for prompt in value):
        return value
    raise PydanticCustomError("prompts", "expected a prompt, a list of prompts, or the path of a .txt with one a line")


def _stages(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value):
        return value
    if isinstance(value, list) and value and all(isinstance(stage, str) and stage for stage in value):
        return value
    raise PydanticCustomError("stages", "expected a stage or a list of stages")


TEXTS: dict[str, Any] = {
    "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]
}
Prompts = Annotated[Any, AfterValidator(_prompts), WithJsonSchema(TEXTS)]
Stages = Annotated[Any, AfterValidator(_stages), WithJsonSchema(TEXTS)]


class Section(BaseModel):
    """A strict section: no key may be missing, none may be new, and "1" is no number."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


class PromptsSection(Section):
    text: Prompts = Field(description="what sample generates: a prompt, a list, or a .txt with one a line")
    calibration: Prompts = Field(
        description="what dump records for calibration; the same forms; null: the same as text"
    )
    verification: Prompts = Field(
        description="what a search checks its answer on, with seeds of its own; null: the last one of calibration"
    )


class RecordingSection(Section):
    steps: int = Field(
        ge=2, le=1000, description="steps of the run that a schedule is searched in, and that noise=path follows"
    )


class Model(Section):
    name: Literal["osp12"] = Field(description="the architecture: a folder of runner/model")
    checkpoint: Text = Field(description="folder with the transformer's config.json, a hub id, or embedded")
    revision: Text | None = Field(description="revision of a hub id; a checkpoint is taken for a hub id only with one")
    cache_dir: Text | None = Field(description="folder for what is downloaded from the hub")
    ae: Text = Field(description="which autoencoder the latents belong to")
    vae: Text | None = Field(description="folder of the autoencoder; null: vae in the checkpoint or beside it")
    text_encoder: Text | None = Field(
        description="folder or hub id; null: text_encoder in the checkpoint or beside it, else the released one"
    )
    model_type: Text = Field(description="dit, the only type there is")
    dtype: Literal["bf16", "fp16", "fp32"] = Field(description="what weights and activations are computed in")
    num_frames: int = Field(ge=1, description="frames of a clip")
    height: int = Field(ge=16, description="pixels")
    width: int = Field(ge=16, description="pixels")
    fps: int = Field(ge=1, le=240, description="frames a second of the saved videos")
    batch_size: int = Field(ge=1, description="prompts generated at once")
    max_sequence_length: int = Field(ge=1, description="tokens of a prompt; more are cut off")
    template: Text = Field(description="what is put around a prompt: plain, unwatermarked, or your own with {}")
    negative_prompt: str = Field(description="what guidance leads away from")
    clean_caption: bool = Field(description="clean prompts the way that the training captions were cleaned")
    enable_tiling: bool = Field(description="decode in tiles, so that memory does not grow with the clip")
    tile_overlap_factor: float = Field(ge=0, lt=1, description="share of a tile that it has in common with the next")
    save_memory: bool = Field(description="smaller tiles: less memory, more time")
    keep_float: list[Text] = Field(description="linears that are known to suffer from quantization, as name patterns")


class Sampler(Section):
    sample_method: Text = Field(description="the solver, by its released name")
    num_sampling_steps: int = Field(ge=1, le=1000, description="steps of the solver")
    guidance_scale: float = Field(ge=0, description="weight of the prompt; 1 and less: no guidance")
    guidance_batch: Literal["joint", "separate"] = Field(description="both guidance branches in one forward, or in two")
    schedule: Text | None = Field(description="file with the timesteps to use, divided by 1000: a JSON list, ascending")
    noise: Literal["draws", "path"] = Field(
        description="noise between steps: drawn as the reference does, or along one path for every schedule of a seed"
    )
    search: Text | None = Field(description="which search to make (search_type of the guides)")
    neighbour_type: Literal["uniform", "random"] | None = Field(description="candidates of a schedule search")
    monte_carlo_iters: int | None = Field(ge=1, description="noise draws a candidate of a schedule search")
    videos_path: Text | None = Field(description="folder of reference videos for a schedule search")
    save_dir: Text | None = Field(description="folder that also gets the schedule that was found")


class Quant(Section):
    scheme: Literal["none", "w8a8", "w8a8_dynamic", "w8a8_timestep", "w8a16", "w4a16", "w4a4_dynamic"] = Field(
        description="how linears compute"
    )
    observer: Literal["minmax", "mean_minmax", "histogram", "percentile", "mse"] = Field(
        description="how an input's range is read from the recorded statistics"
    )
    percentile: float = Field(
        gt=50, le=100, description="share of the values in range, percent; observer=percentile only"
    )
    include: list[Text] = Field(min_length=1, description="linears to quantize, as patterns on full names")
    exclude: list[Text] = Field(description="linears of these that stay float all the same")
    folder: Text | None = Field(description="folder that also gets the exported weights and their description")


class Cache(Section):
    policy: Text = Field(description="which blocks are reused from one step to the next")
    config: Text | None = Field(description="file with a cache configuration")
    ratio: float | None = Field(gt=1, le=2, description="speed-up that a search aims at")
    save_path: Text | None = Field(description="file that also gets the configuration that was found")


class Parallel(Section):
    world_size: int = Field(ge=1, description="processes: 2 for cfg, times ulysses")
    cfg: bool = Field(description="the two guidance branches on two processes, always in separate forwards")
    ulysses: int = Field(ge=1, description="processes that share one sequence")
    vae: bool = Field(description="decode one clip on all processes")
    nodes: int = Field(ge=1, description="machines that share the processes; with several, launch=print")
    master_addr: Text | None = Field(description="name or address of the first machine; null: this one's name")
    master_port: int = Field(ge=1, le=65535, description="port where the processes find each other; another if taken")


class Hardware(Section):
    device: Literal["cpu", "cuda", "npu", "gcu"] = Field(description="where the model runs")
    env: dict[str, str] = Field(description="environment of the worker, set before torch starts")


class Dump(Section):
    format: Literal["safetensors", "pth", "pth_timestep"] = Field(
        description="pth also writes msModelSlim's calib_data.pth, pth_timestep with its timestep records"
    )
    from_file: Text | None = Field(alias="from", description="a calib_data .pth of yours, in place of recorded calls")
    folder: Text | None = Field(description="folder that also gets calib_data.pth")


class Sample(Section):
    save: bool = Field(description="write videos and a contact sheet")
    folder: Text | None = Field(description="folder that also gets the videos")
    compare: bool = Field(description="against the float model, on the same prompts and seeds")
    judge: Literal["none", "world"] = Field(description="who scores the clips: nobody, or the little world's judge")
    lpips: Text | None = Field(description="folder with weights of LPIPS: also measure that distance to float")
    clip: Text | None = Field(description="folder of a CLIP model: also score clips by their prompts")


class Timing(Section):
    warmup: int = Field(ge=0, description="steps before time is taken")
    repeats: int = Field(ge=0, description="timed steps of each arm, taken in turn; 0 times none")


class Config(Section):
    """One run, whole: what is composed, and after resolving what run.json holds."""

    name: str = Field(pattern=r"^[\w.+-]+$", description="names the output folder; a recipe's name by default")
    seed: int = Field(ge=0, lt=2**63, description="of all noise, together with a prompt's place in its list")
    output: Text = Field(description="folder of the runs; .store in it holds what they share")
    show: Literal["plan", "estimate"] | None = Field(description="plan: show what would run and stop there")
    launch: Literal["print"] | None = Field(
        description="print: write the run folder, show what to type to start it, and stop there"
    )
    until: Text | None = Field(description="the last stage to run")
    redo: Stages = Field(description="stage, or list of stages, to make again although stored, and what builds on them")
    prompts: PromptsSection
    recording: RecordingSection
    model: Model
    sampler: Sampler
    quant: Quant
    cache: Cache
    parallel: Parallel
    hardware: Hardware
    dump: Dump
    sample: Sample
    timing: Timing


# A key whose feature does not exist yet is refused, never ignored: the values that do exist, by key.
AVAILABLE: dict[str, tuple[Any, ...]] = {
    "show": (None, "plan"),
    "quant.scheme": ("none", "w8a8"),
    "cache.policy": ("none",),
    "cache.config": (None,),
    "cache.ratio": (None,),
    "cache.save_path": (None,),
    "sampler.search": (None,),
    "sampler.neighbour_type": (None,),
    "sampler.monte_carlo_iters": (None,),
    "sampler.videos_path": (None,),
    "sampler.save_dir": (None,),
    "parallel.ulysses": (1,),
    "parallel.vae": (False,),
    "hardware.device": ("cpu", "cuda"),
}


def keys(section: type[BaseModel] = Config, prefix: str = "") -> dict[str, str]:
    """Every full key and its meaning, in the order of the schema."""
    found: dict[str, str] = {}
    for name, field in section.model_fields.items():
        key = prefix + (field.alias or name)
        kind = field.annotation
        # Python 3.10 takes dict[str, str] for a type, too.
        if get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= keys(kind, f"{key}.")
        else:
            found[key] = field.description or ""
    return found


def field(key: str) -> FieldInfo | None:
    """What the schema says of a full key; None if there is no such key."""
    section: Any = Config
    *sections, name = key.split(".")
    for part in sections:
        found = section.model_fields.get(part)
        if found is None or not isinstance(found.annotation, type) or not issubclass(found.annotation, BaseModel):
            return None
        section = found.annotation
    return next((field for known, field in section.model_fields.items() if name == (field.alias or known)), None)
