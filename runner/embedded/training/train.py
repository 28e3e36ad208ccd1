"""Train a little checkpoint from scratch: `python -m runner.embedded.training.train --model MODEL --out FOLDER`.

Stages `vae`, `transformer` and, for osp12, `decoder` (the autoencoder's, alone) keep a resumable state and a curve in
FOLDER (`<stage>.pt`, `<stage>.jsonl`): the same command goes on where it stopped. `export` writes the released layout,
by itself of the states as they stand. The defaults suit two CPU cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from runner.embedded.training import export, opensora12, sd3, train_opensora12, train_sd3, train_transformer, train_vae
from runner.embedded.training.journal import Journal
from runner.embedded.training.text import build_clip_tokenizer, build_tokenizer
from runner.embedded.training.train_transformer import TransformerPlan
from runner.embedded.training.train_vae import REFINEMENT, VAEPlan

TRAINERS: dict[str, Any] = {
    "osp12": (train_vae.train_vae, train_transformer.train_transformer, VAEPlan(), TransformerPlan()),
    "sd3": (train_sd3.train_vae, train_sd3.train_transformer, train_sd3.VAE_PLAN, train_sd3.PLAN),
    "opensora12": (
        train_opensora12.train_vae,
        train_opensora12.train_transformer,
        train_opensora12.VAE_PLAN,
        train_opensora12.PLAN,
    ),
}
NUMBERS = ("iterations", "batch", "clips", "rate", "check")  # of the transformer's plan that the command line can set


def main(arguments: list[str] | None = None) -> None:
    """Run the stages asked for, in order; stops early, resumable, when --minutes are over."""
    parser = argparse.ArgumentParser(prog="python -m runner.embedded.training.train", description=__doc__)
    parser.add_argument("--model", choices=TRAINERS, default="osp12")
    parser.add_argument("--out", type=Path, required=True, help="folder of states and curves")
    parser.add_argument("--stage", choices=("all", "vae", "transformer", "decoder", "export"), default="all")
    parser.add_argument("--weights", type=Path, help="where export writes (default: OUT/weights)")
    parser.add_argument("--minutes", type=float, help="stop a stage, resumable, after this many wall minutes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--vae-phases", nargs="+", help="frames:clips:iterations of each phase of the autoencoder")
    parser.add_argument("--iterations", type=int, help="of the transformer")
    parser.add_argument("--batch", type=int, help="clips in an iteration of the transformer")
    parser.add_argument("--clips", type=int, help="latents computed for each seen caption")
    parser.add_argument("--rate", type=float, help="peak learning rate of the transformer")
    parser.add_argument("--check", type=int, help="iterations between points of the score curve")
    refine = REFINEMENT.iterations
    parser.add_argument(
        "--refine", type=int, default=refine, help=f"iterations of the decoder alone (default {refine})"
    )
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    device, out, stage = torch.device(options.device), options.out, options.stage
    train_autoencoder, train_rest, vae_plan, plan = TRAINERS[options.model]
    if stage == "decoder" and options.model != "osp12":
        parser.error(f"{options.model} has no stage 'decoder'")
    if options.vae_phases:
        frames = [tuple(map(int, phase.split(":"))) for phase in options.vae_phases]
        vae_plan = replace(vae_plan, phases=tuple((f, b, i) for f, b, i in frames))
    refinement = replace(REFINEMENT, phases=((*REFINEMENT.phases[0][:2], options.refine),))
    plan = replace(plan, **{name: value for name in NUMBERS if (value := getattr(options, name)) is not None})

    if stage == "export":
        _export_states(options.model, out, options.weights or out / "weights")
        return
    vae = train_autoencoder(out, device, vae_plan, options.minutes)
    if vae is None or stage == "vae":
        return
    if stage != "decoder" and train_rest(out, vae, device, plan, options.minutes) is None:
        return
    if stage == "transformer":
        return
    if options.model == "osp12" and not train_vae.refine_decoder(out, vae, refinement, options.minutes):
        return
    if stage == "all":
        _export_states(options.model, out, options.weights or out / "weights")


def _export_states(model: str, out: Path, weights: Path) -> None:
    """Export the states as they stand; the transformer may be on its way, the autoencoder must be done."""
    states: dict[str, dict[str, Any]] = {}
    for stage in ("vae", "transformer"):
        state = Journal(out, stage).resume()
        if state is None:
            raise SystemExit(f"{out / f'{stage}.pt'} is missing: train the stage {stage!r} first")
        states[stage] = state
    if not states["vae"]["done"]:
        raise SystemExit("the autoencoder is still in training, its latents have no scale yet")
    vae, small, write = _untrained(model)
    vae.load_state_dict((Journal(out, "decoder").resume() or states["vae"])["model"])
    small.load_state_dict(states["transformer"]["average"])
    size = write(weights, vae, small)
    print(f"exported {size:,} bytes to {weights}, transformer at iteration {states['transformer']['iteration']}")


def _untrained(model: str) -> tuple[Any, Any, Callable[[Path, Any, Any], int]]:
    """The autoencoder, what is trained on its latents, and how both are written."""
    if model == "sd3":
        small = sd3.TextToImage(len(build_clip_tokenizer()))
        return sd3.build_vae(), small, lambda folder, vae, each: sd3.export(folder, sd3.scaled(vae), each)
    words = len(build_tokenizer())
    if model == "opensora12":
        return opensora12.build_vae(), opensora12.TextToVideo(words), opensora12.export
    return train_vae.build_vae(), train_transformer.TextToVideo(words), export.export


if __name__ == "__main__":
    main()
