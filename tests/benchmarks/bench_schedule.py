"""What searched schedules are worth on the shipped weights: against 100 steps, beside the solver's own timesteps and
Align Your Steps, on prompts and noise that no search has seen; every forward of the searches is counted.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_schedule.py [--clips 60] [--steps 50,25] [--output outputs]

Runs the recipe itself; artifacts are reused when it is run again. --recorded and --draws shorten it to try it out.

Passes when for each number of steps the searched schedule's latent error (mean over clips) is at most the uniform
one's and Align Your Steps', the search (recorded prompts included) took 8 (at 50 steps; else 5) times fewer forwards
than Align Your Steps with msModelSlim's counts (11 candidates, 5 draws), and the judge's paired interval against the
long run lies above -2 points.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from processor_line import say_processor
from safetensors.torch import load_file

from runner.embedded.judge import score
from runner.embedded.training.scores import spread
from runner.metrics.paired import paired_interval
from runner.metrics.video import relative_error
from runner.recording.recording import Recording
from runner.sampler.probes import to_align

CALIBRATION = ("a magenta circle moving right", "a cyan square moving down")
SEEN = len(CALIBRATION)  # the first clips have the seeds that these have, too: they are left out of the figures


def run(options: argparse.Namespace, name: str, *arguments: str) -> Path:
    """The folder of a run with these arguments, on held-out prompts and the noise that all schedules share."""
    options.output.mkdir(parents=True, exist_ok=True)
    captions = [text for text in spread("all", options.clips + 2 * SEEN, seed=0) if text not in CALIBRATION]
    prompts = options.output / f"held_out_{options.clips}.txt"
    prompts.write_text("\n".join(captions[: options.clips + SEEN]))
    command = [sys.executable, "-m", "runner", f"name={name}", f"output={options.output}", f"prompts.text={prompts}"]
    shared = ["model.batch_size=10", "sampler.noise=path", f"recording.steps={options.recorded}", "sample.save=false"]
    shared.append(f"prompts.calibration=[{','.join(CALIBRATION)}]")
    if options.checkpoint:
        shared.append(f"model.checkpoint={options.checkpoint}")
    subprocess.run([*command, *shared, *arguments], check=True, stdout=sys.stderr)
    return max((options.output / name).iterdir(), key=lambda folder: folder.stat().st_mtime_ns)


def made(folder: Path) -> list[tuple[str, Path]]:
    """Prompts and folders of the clips that sample made, without those of seeds that were seen."""
    entries = json.loads((folder / "sample" / "prompts.json").read_text())
    return [(entry["prompt"], folder / "sample" / entry["folder"]) for entry in entries[SEEN:]]


def figures(clips: list[tuple[str, Path]], references: list[Path]) -> tuple[list[float], list[tuple[float, float]]]:
    """Of each clip: the latents' error against its reference, and the judge's scores of both."""
    errors, judged = [], []
    for (prompt, clip), reference in zip(clips, references, strict=True):
        latents = [load_file(each / "latents.safetensors")["latents"] for each in (clip, reference)]
        frames = [load_file(each / "frames.safetensors")["frames"].numpy() for each in (clip, reference)]
        errors.append(relative_error(*latents))
        judged.append((score(frames[0], prompt), score(frames[1], prompt)))
    return errors, judged


def recorded_forwards(folder: Path) -> int:
    """Forwards of the runs that the search itself needed of dump, references of the comparison apart."""
    recording = Recording(folder / "dump-schedule")
    parts = [*recording.parts("trajectory"), *recording.parts("verification")]
    return sum(len(list((part / "trajectory").iterdir())) for part in parts)


def compare(options: argparse.Namespace, steps: int) -> bool:
    count = f"sampler.num_sampling_steps={steps}"
    aligned = ("+recipe=osp12_schedule", "sampler.search=ays", f"sampler.monte_carlo_iters={options.draws}", count)
    aligned += ("sample.compare=false",)  # the long run of each clip is the searched one's
    folders = {
        "searched": run(options, f"bench_schedule_{steps}", "+recipe=osp12_schedule", count),
        "uniform": run(options, f"bench_uniform_{steps}", "+recipe=osp12_float", count),
        "ays": run(options, f"bench_ays_{steps}", *aligned),
    }
    references = Recording(folders["searched"] / "dump-schedule").parts("text")[SEEN:]
    found = {name: figures(made(folder), references) for name, folder in folders.items()}
    searches = {
        name: json.loads((folders[name] / "search-schedule" / "search.json").read_text())
        for name in ("searched", "ays")
    }
    print(f"\n{steps} steps in place of {options.recorded}, {len(found['uniform'][0])} clips")
    print("            latent error                         difference to uniform        judge, points to the long run")
    print("            mean    median (quartiles)           mean [95 %]                  mean [95 %]")
    intervals = {}
    for name, (errors, judged) in found.items():
        low, middle, high = statistics.quantiles(errors, n=4)
        change = paired_interval(errors, found["uniform"][0])
        intervals[name] = paired_interval(*zip(*judged, strict=True))
        scored = [100 * (value or 0.0) for value in intervals[name][:3]]
        print(
            f"  {name:<9} {statistics.fmean(errors):.4f}  {middle:.4f} ({low:.4f} to {high:.4f})"
            f"   {change.difference:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"
            f"   {scored[0]:+.2f} [{scored[1]:+.2f}, {scored[2]:+.2f}]"
        )
    search, recorded = searches["searched"]["forwards"], recorded_forwards(folders["searched"])
    usual, factor = to_align(steps, 5), 8 if steps >= 50 else 5
    print(f"  chosen: {searches['searched']['chosen']}; tried (error expected, found):")
    for tried in searches["searched"]["tried"]:
        expected = "-" if tried["predicted"] is None else f"{tried['predicted']:.4f}"
        print(f"    {tried['name']:<24} {expected:>8} {tried['error']:.4f}")
    total, aligned_here = search + recorded, searches["ays"]["forwards"]
    print(
        f"  forwards: search {search}, its recorded prompts {recorded}, together {total}; Align Your Steps "
        f"{aligned_here} here, {usual} with msModelSlim's counts: {usual / total:.1f} times as many "
        f"({usual / search:.1f} times the search alone)"
    )
    means = {name: statistics.fmean(errors) for name, (errors, _) in found.items()}
    kept = intervals["searched"].low
    return (
        means["searched"] <= min(means["uniform"], means["ays"])
        and usual >= factor * total
        and kept is not None
        and kept > -0.02
    )


def arguments(about: str | None) -> argparse.ArgumentParser:
    """What this benchmark and bench_stacked.py are both told."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--recorded", type=int, default=100, help="steps of the long run")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    parser.add_argument("--checkpoint", help="in place of the shipped weights; prompts stay the little world's")
    return parser


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=lambda text: [int(each) for each in text.split(",")], default=[50, 25])
    parser.add_argument("--draws", type=int, default=5, help="of Align Your Steps for each candidate")
    options = parser.parse_args()
    say_processor()
    passed = [compare(options, steps) for steps in options.steps]
    print("\nreached" if all(passed) else "\nnot reached")
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
