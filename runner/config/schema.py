"""What each key of a run means and may be; what it is by default stands in conf/ alone.

One class a section of the configuration, named like its conf group. Rules that a key's own type cannot say (between
groups, about files, or of one model) are in rules.py and in the model's rules.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from runner.config.models import OSP12, SD3, Diffusers, OpenSora12, Section, Text, finite


def _prompts(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    if isinstance(value, list) and value and all(isinstance(prompt, str) and prompt.strip() for prompt in value):
        return value
    raise PydanticCustomError("prompts", "expected a prompt, a list of prompts, or the path of a .txt with one a line")


def _ratio(value: Any) -> Any:
    if value is None or value == "auto":
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 1 < value <= 2:
        return value
    raise PydanticCustomError("ratio", "expected a number above 1 and up to 2, or auto")


def _stages(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value):
        return value
    if isinstance(value, list) and value and all(isinstance(stage, str) and stage for stage in value):
        return value
    raise PydanticCustomError("stages", "expected a stage or a list of stages")


TEXTS: dict[str, Any] = {
    "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]
}
NUMBER = {"type": "number", "exclusiveMinimum": 1, "maximum": 2}
Prompts = Annotated[Any, AfterValidator(_prompts), WithJsonSchema(TEXTS)]
Stages = Annotated[Any, AfterValidator(_stages), WithJsonSchema(TEXTS)]
Ratio = Annotated[Any, AfterValidator(_ratio), WithJsonSchema({"anyOf": [NUMBER, {"const": "auto"}, {"type": "null"}]})]


def _references(value: Any) -> Any:
    if (
        value is None
        or isinstance(value, str)
        or (isinstance(value, list) and value and all(place is None or isinstance(place, str) for place in value))
    ):
        return value
    raise PydanticCustomError("references", "expected a file, or a list of one for each prompt")


def _strategies(value: Any) -> Any:
    if value is None or isinstance(value, str) or (isinstance(value, list) and value):
        return finite(value)
    raise PydanticCustomError("strategies", "expected a mask strategy, or a list of one for each prompt")


References = Annotated[Any, AfterValidator(_references), WithJsonSchema(TEXTS)]
PLANS: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "array"}, {"type": "null"}]}
Strategies = Annotated[Any, AfterValidator(_strategies), WithJsonSchema(PLANS)]


class PromptsSection(Section):
    text: Prompts = Field(description="what sample generates: a prompt, a list, or a .txt with one a line")
    calibration: Prompts = Field(
        description="what dump records for calibration; the same forms; null: the same as text"
    )
    verification: Prompts = Field(
        description="what a search checks its answer on, with seeds of its own; null: the last one of calibration"
    )
    references: References = Field(
        description="files that the videos of text begin with, go on from or end with: one place for all, or a list of "
        "one for each prompt; several files of a prompt are joined by ;"
    )
    mask_strategy: Strategies = Field(
        description="which frames references are given for, as loop,reference,reference start,target start,length,edit "
        "ratio;... or as a list of such keys; one for all prompts, or a list of one for each"
    )


class RecordingSection(Section):
    steps: int = Field(
        ge=2, le=1000, description="steps of the run that a schedule is searched in, and that noise=path follows"
    )
    lags: int = Field(
        ge=1, le=20, description="steps that a block's movement is recorded over, for a search of a cache"
    )


class Sampler(Section):
    sample_method: Text = Field(description="the solver, by its released name")
    num_sampling_steps: int = Field(ge=1, le=1000, description="steps of the solver")
    guidance_scale: float = Field(ge=0, description="weight of the prompt; 1 and less: no guidance")
    guidance_batch: Literal["joint", "separate"] | None = Field(
        description="both guidance branches in one forward, or in two; null: as a foreign pipeline does it"
    )
    schedule: Text | None = Field(description="file with the timesteps to use, divided by 1000: a JSON list, ascending")
    noise: Literal["draws", "path"] = Field(
        description="noise between steps: drawn as the reference does, or along one path for every schedule of a seed"
    )
    search: Literal["recording", "ays"] | None = Field(
        description="how to search the timesteps: by what jumps in recorded runs cost, or Align Your Steps"
    )
    neighbour_type: Literal["uniform", "random"] = Field(
        description="search=ays: candidates evenly between the neighbors, or at random around the present one"
    )
    monte_carlo_iters: int = Field(ge=1, description="search=ays: draws of noise for each candidate")
    videos_path: Text | None = Field(
        description="search=ays: folder of .mp4 files to take for clean clips; null: the recorded prompts' results"
    )
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
    policy: Literal["none", "dit_cache", "adaptive"] = Field(
        description="reuse of blocks from step to step: none, one range at fixed intervals, or a range for each refresh"
    )
    config: Text | None = Field(description="JSON file with what is reused: msModelSlim's, MindIE-SD's or adaptive's")
    step_start: int | None = Field(ge=0, description="in place of a file: the first step whose blocks are kept")
    step_interval: int | None = Field(ge=2, description="in place of a file: every so many steps all is computed")
    block_start: int | None = Field(ge=0, description="in place of a file: the first block that is reused")
    num_blocks: int | None = Field(ge=0, description="in place of a file: how many blocks are reused")
    ratio: Ratio = Field(description="speed-up that a search aims at; auto: the largest that quality allows")
    quality: float | None = Field(gt=0, description="relative error of the latents that ratio=auto may cost")
    search: Literal["recording", "exhaustive"] = Field(
        description="search on dump's recording, or as msModelSlim does, by a generation of each candidate"
    )
    save_path: Text | None = Field(description="file that also gets the configuration that was found")


class Parallel(Section):
    world_size: int = Field(ge=1, description="processes: 2 for cfg, times ulysses")
    cfg: bool = Field(description="the two guidance branches on two processes, always in separate forwards")
    ulysses: int = Field(ge=1, description="processes that share one sequence")
    vae: bool = Field(description="decode one clip on all processes")
    nodes: int = Field(ge=1, description="machines that share the processes; with several, launch=print")
    master_addr: Text | None = Field(description="name or address of the first machine; null: this one's name")
    master_port: int = Field(
        ge=1, le=65535, description="port where the processes of several machines meet; on one, any free port"
    )


class Hardware(Section):
    device: Literal["cpu", "cuda", "npu", "gcu"] = Field(description="where the model runs")
    compute: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        description="what is computed in; auto: what the device multiplies fastest of what holds the weights"
    )
    layerwise_casting: bool | None = Field(
        description="weights stay in model.dtype and are cast layer by layer as they compute: less memory, same "
        "results; null: where memory forbids to cast them all"
    )
    offload: bool = Field(
        description="parts wait on the host while another works on the device: less of its memory, same results"
    )
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
    benchmark: bool = Field(description="time whole generations, from words to saved videos, in a stage of their own")
    warmup: int = Field(ge=0, description="steps before time is taken; generations of 5 steps where these are timed")
    repeats: int = Field(ge=0, description="timed steps of each arm, taken in turn, or timed generations; 0 times none")


class Config(Section):
    """One run, whole: what is composed, and after resolving what run.json holds."""

    name: str = Field(pattern=r"^[\w.+-]+$", description="names the output folder; a recipe's name by default")
    seed: int = Field(ge=0, lt=2**63, description="of all noise, together with a prompt's place in its list")
    output: Text = Field(description="folder of the runs; .store in it holds what they share")
    show: Literal["plan", "estimate"] | None = Field(
        description="plan: show what would run and stop there; estimate: and for how long, by a probe"
    )
    launch: Literal["print"] | None = Field(
        description="print: write the run folder, show what to type to start it, and stop there"
    )
    until: Text | None = Field(description="the last stage to run")
    redo: Stages = Field(description="stage, or list of stages, to make again although stored, and what builds on them")
    prompts: PromptsSection
    recording: RecordingSection
    model: OSP12 | OpenSora12 | SD3 | Diffusers = Field(discriminator="name")
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
    "quant.scheme": ("none", "w8a8"),
    "parallel.ulysses": (1,),
    "parallel.vae": (False,),
}


def keys(architecture: str | None = None, section: type[BaseModel] = Config, prefix: str = "") -> dict[str, str]:
    """Every full key and its meaning, in the order of the schema: of one architecture, or of all."""
    found: dict[str, str] = {}
    for name, field in section.model_fields.items():
        key = prefix + (field.alias or name)
        inner = list(_sections(field, architecture))
        for kind in inner:
            found |= {key: meaning for key, meaning in keys(None, kind, f"{key}.").items() if key not in found}
        if not inner:
            found[key] = field.description or ""
    return found


def architectures() -> tuple[str, ...]:
    """The names that model.name may have."""
    return tuple(map(_name, _sections(Config.model_fields["model"], None)))


def field(key: str, architecture: str | None = None) -> FieldInfo | None:
    """What the schema says of a full key, of an architecture or else the first that has it; None if there is none."""
    sections: list[type[BaseModel]] = [Config]
    *parts, name = key.split(".")
    for part in parts:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        sections = [inner for field in fields for inner in _sections(field, architecture)]
    found = (field for kind in sections for known, field in kind.model_fields.items() if name == (field.alias or known))
    return next(found, None)


def _sections(field: FieldInfo, architecture: str | None) -> Iterator[type[BaseModel]]:
    """The sections that a field may hold: one, or, of the model, one for each architecture."""
    for kind in get_args(field.annotation) or [field.annotation]:
        # Python 3.10 takes dict[str, str] for a type, too.
        if get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, BaseModel):
            if architecture is None or field.discriminator is None or _name(kind) == architecture:
                yield kind


def _name(kind: type[BaseModel]) -> str:
    return str(get_args(kind.model_fields["name"].annotation)[0])


SECTIONS = tuple(name for name, field in Config.model_fields.items() if any(_sections(field, None)))
