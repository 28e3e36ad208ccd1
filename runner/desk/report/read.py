"""A run folder as one value. What is missing or broken in it is said in `Run.gaps`, never raised: the page of a run
that failed, or is still under way, is the page that somebody needs most."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.desk.report.files import Entry, png_size, tree
from runner.desk.report.values import Reader, items, mapping, number, pick, rows

EXPORTS = ("quant_model_weight_*.safetensors*", "quant_model_description_*.json")
FLOAT_WEIGHTS = "diffusion_pytorch_model*.safetensors"
PICTURES = (".mp4", ".png")
CACHES = {"dit_cache": "DiT cache", "adaptive": "adaptive cache"}


@dataclass(frozen=True)
class Stage:
    """A line of the plan and what became of it. `state`: done, reused, skipped, running, failed or waiting."""

    name: str
    state: str
    reason: str
    writes: str
    seconds: float | None


@dataclass(frozen=True)
class Clip:
    """One prompt: its float and its changed clip as paths relative to the run folder, and its row of metrics.json."""

    prompt: str
    seed: int | None
    reference: str | None
    result: str | None
    figures: Mapping[str, Any]

    @property
    def picture(self) -> str | None:
        """Whatever there is to look at."""
        return self.result or self.reference


@dataclass(frozen=True)
class Layer:
    """What quantization did to one linear layer, in decibels of its outputs (all calls, the worst call) and weights.

    Infinite where there is no noise, None where none was measured. `why` is the pattern that kept it in float.
    """

    name: str
    snr_db: float | None
    worst_call_snr_db: float | None
    weight_snr_db: float | None
    shape: str
    quantized: bool
    why: str


@dataclass(frozen=True)
class Run:
    """Everything that a page says about a run.

    Mappings are JSON as it was read: `summary`, `ledger` and `cache` of sample/metrics.json, `measured`, `recorded` and
    `cache_measured` of measurements/sample.json, dump.json and search-cache.json, `schedule` and `cache_search` of the
    search.json of either search.
    """

    folder: Path
    name: str
    created: str
    command: Sequence[str]
    config: Mapping[str, Any]
    origin: Mapping[str, str]
    checkpoint: Mapping[str, Any]
    state: str
    error: str | None
    failed_stage: str | None
    traceback: str | None
    seconds: float | None
    stages: Sequence[Stage]
    clips: Sequence[Clip]
    contact_sheet: str | None
    contact_sheet_size: tuple[int, int] | None
    summary: Mapping[str, Any]
    ledger: Mapping[str, Any]
    cache: Mapping[str, Any]
    cache_search: Mapping[str, Any]
    cache_measured: Mapping[str, Any]
    measured: Mapping[str, Any]
    recorded: Mapping[str, Any]
    schedule: Mapping[str, Any]
    layers: Sequence[Layer]
    float_bytes: int | None
    export_bytes: int | None
    files: Entry
    provenance: Mapping[str, Any]
    rerun: Mapping[str, Any]
    gaps: Sequence[str]

    @property
    def arm(self) -> str | None:
        """What the float reference is compared with ("W8A8 + DiT cache"), None for a run that changes nothing."""
        return arm(self.config)

    @property
    def scheme(self) -> str | None:
        """How its linears compute ("W8A8"), None for float ones."""
        scheme = pick(self.config, "quant", "scheme")
        return None if scheme in (None, "none") else str(scheme).upper()


def read_run(folder: Path) -> Run:
    """The run of a folder. Raises FileNotFoundError only where there is no such folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a run folder")
    reader = Reader(folder)
    run = reader.mapping("run.json", expected=True)
    plan = reader.mapping("plan.json", expected=True)
    status = reader.mapping("status.json", expected=False)
    config = mapping(run.get("config"))
    done = status.get("state") == "done"
    stages = _stages(reader, plan, status)
    made = {stage.name for stage in stages if stage.state in ("done", "reused")}
    long = "dump-schedule" if "dump-schedule" in made else "dump"  # the run that samples are compared with
    changed = arm(config) is not None
    compared = changed and pick(config, "sample", "compare") is not False
    metrics = reader.mapping("sample/metrics.json", expected="sample" in made and compared)
    sheet = folder / "sample" / "contact_sheet.png"
    exports = [file for pattern in EXPORTS for file in sorted((folder / "quantize").glob(pattern))]
    return Run(
        folder=folder,
        name=str(run.get("name") or folder.name),
        created=str(run.get("created") or ""),
        command=[str(word) for word in items(run.get("command"))],
        config=config,
        origin=mapping(run.get("origin")),
        checkpoint=mapping(run.get("checkpoint")),
        state=str(status.get("state") or "waiting"),
        error=str(status["error"]) if status.get("error") else None,
        failed_stage=str(status["stage"]) if status.get("state") == "failed" and status.get("stage") else None,
        traceback=next((name for name in ("traceback.txt", "run.log") if (folder / name).is_file()), None),
        seconds=number(status, "seconds"),
        stages=stages,
        clips=_clips(reader, metrics, long, changed, done and "sample" in made),
        contact_sheet="sample/contact_sheet.png" if sheet.is_file() else None,
        contact_sheet_size=png_size(sheet),
        summary=mapping(metrics.get("summary")),
        ledger=mapping(metrics.get("ledger")),
        cache=mapping(metrics.get("cache")),
        cache_search=reader.mapping("search-cache/search.json", expected="search-cache" in made),
        cache_measured=reader.mapping("measurements/search-cache.json", expected=False),
        measured=reader.mapping("measurements/sample.json", expected="sample" in made),
        recorded=reader.mapping(f"measurements/{long}.json", expected=False),
        schedule=reader.mapping("search-schedule/search.json", expected="search-schedule" in made),
        layers=_layers(reader.rows("quantize/layers.json", expected="quantize" in made)),
        float_bytes=_float_bytes(mapping(run.get("checkpoint")), mapping(metrics.get("ledger"))),
        export_bytes=sum(file.stat().st_size for file in exports) or None,
        files=tree(folder),
        provenance=reader.mapping("provenance.json", expected=True),
        rerun=reader.mapping("rerun.json", expected=False),
        gaps=reader.gaps,
    )


def arm(config: Mapping[str, Any]) -> str | None:
    """What a run of this configuration changes: which steps it takes, how it quantizes, what it reuses."""
    scheme, policy = pick(config, "quant", "scheme"), pick(config, "cache", "policy")
    names = [str(scheme).upper()] if scheme not in (None, "none") else []
    names += [CACHES.get(str(policy), str(policy))] if policy not in (None, "none") else []
    if pick(config, "sampler", "search") is not None:
        names.insert(0, f"{pick(config, 'sampler', 'num_sampling_steps')} steps")
    return " + ".join(names) or None


def _stages(reader: Reader, plan: Mapping[str, Any], status: Mapping[str, Any]) -> list[Stage]:
    """The plan's lines; a stage before the one that status.json names is over, one after it has not begun."""
    planned = rows(plan.get("stages"))
    names = [str(row.get("stage")) for row in planned]
    state, current = status.get("state"), status.get("stage")
    position = names.index(current) if current in names else (len(names) if state == "done" else 0)
    stages = []
    for place, (name, row) in enumerate(zip(names, planned, strict=True)):
        over = {"reuse": "reused", "skip": "skipped"}.get(str(row.get("action")), "done")
        if place < position or state == "done":
            became = over
        elif place == position and state in ("running", "failed"):
            became = str(state)
        else:
            became = "skipped" if over == "skipped" else "waiting"
        measured = reader.mapping(f"measurements/{name}.json", expected=False)
        stages.append(
            Stage(
                name=name,
                state=became,
                reason=str(row.get("reason") or ""),
                writes=str(row.get("writes") or ""),
                seconds=number(measured, "seconds"),
            )
        )
    return stages


def _clips(reader: Reader, metrics: Mapping[str, Any], dump: str, changed: bool, sampled: bool) -> list[Clip]:
    """One clip for each prompt that sample made, or will make: dump's reference beside it, told by prompt and seed."""
    references = {
        (row.get("prompt"), row.get("seed")): _picture(reader.folder, dump, row)
        for row in reader.rows(f"{dump}/prompts.json", expected=False)
        if "text" in (row.get("roles") or ["text"])
    }
    figures = {row.get("index"): row for row in rows(metrics.get("prompts"))}
    clips = []
    for place, row in enumerate(reader.rows("sample/prompts.json", expected=sampled)):
        prompt, seed = row.get("prompt"), row.get("seed")
        reference, made = references.get((prompt, seed)), _picture(reader.folder, "sample", row, place)
        if not changed:
            reference, made = made or reference, None
        clips.append(Clip(str(prompt), seed, reference, made, figures.get(row.get("index", place), {})))
    if not clips:
        clips = [Clip(str(prompt), seed, path, None, {}) for (prompt, seed), path in references.items()]
    return clips


def _picture(folder: Path, stage: str, row: Mapping[str, Any], place: int = 0) -> str | None:
    name = row.get("folder") or f"prompt-{row.get('index', place):03d}"
    paths = (f"{stage}/videos/{name}{suffix}" for suffix in PICTURES)
    return next((path for path in paths if (folder / path).is_file()), None)


def _layers(rows: Sequence[Mapping[str, Any]]) -> list[Layer]:
    layers = []
    for row in rows:
        layers.append(
            Layer(
                name=str(row.get("layer") or "?"),
                snr_db=_decibel(row, "snr_db"),
                worst_call_snr_db=_decibel(row, "worst_call_snr_db"),
                weight_snr_db=_decibel(row, "weight_snr_db"),
                shape=" × ".join(map(str, items(row.get("shape")))),
                quantized=bool(row.get("quantized", True)),
                why=str(row.get("why") or ""),
            )
        )
    return layers


def _decibel(row: Mapping[str, Any], key: str) -> float | None:
    """JSON null stands for infinity here."""
    return math.inf if key in row and row[key] is None and row.get("quantized", True) else number(row, key)


def _float_bytes(checkpoint: Mapping[str, Any], ledger: Mapping[str, Any]) -> int | None:
    """Size of the float transformer's weights: as recorded, or as found where the checkpoint still lies."""
    recorded = number(ledger, "weight_bytes", "float")
    if recorded is not None:
        return int(recorded)
    path = Path(str(checkpoint.get("path")))  # a hub id is not absolute: nothing here knows where its files are
    try:
        files = [file for place in (path, path / "transformer") for file in place.glob(FLOAT_WEIGHTS)]
        return sum(file.stat().st_size for file in files) or None if path.is_absolute() else None
    except OSError:
        return None
