"""Train the little checkpoint from scratch: `python -m runner.embedded.train --out FOLDER`.

Stages `vae`, `transformer` and `decoder` (the autoencoder's, alone) keep a resumable state and a curve in FOLDER
(`<stage>.pt`, `<stage>.jsonl`): the same command goes on where it stopped. `export` writes the released layout, by
itself of the states as they stand. The defaults suit two CPU cores.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from runner.embedded.export import export
from runner.embedded.journal import Journal
from runner.embedded.text import build_tokenizer
from runner.embedded.train_transformer import TextToVideo, TransformerPlan, train_transformer
from runner.embedded.train_vae import REFINEMENT, VAEPlan, build_vae, refine_decoder, train_vae


def main(arguments: list[str] | None = None) -> None:
    """Run the stages asked for, in order; stops early, resumable, when --minutes are over."""
    parser = argparse.ArgumentParser(prog="python -m runner.embedded.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of states and curves")
    parser.add_argument("--stage", choices=("all", "vae", "transformer", "decoder", "export"), default="all")
    parser.add_argument("--weights", type=Path, help="where export writes (default: OUT/weights)")
    parser.add_argument("--minutes", type=float, help="stop a stage, resumable, after this many wall minutes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    vae_plan, plan = VAEPlan(), TransformerPlan()
    phases = " ".join(":".join(map(str, phase)) for phase in vae_plan.phases)
    parser.add_argument("--vae-phases", nargs="+", help=f"frames:clips:iterations of each phase (default {phases})")
    parser.add_argument("--iterations", type=int, default=plan.iterations, help="of the transformer")
    parser.add_argument("--batch", type=int, default=plan.batch, help="clips in an iteration of the transformer")
    parser.add_argument("--clips", type=int, default=plan.clips, help="latents computed for each seen caption")
    parser.add_argument("--rate", type=float, default=plan.rate, help="peak learning rate of the transformer")
    parser.add_argument("--check", type=int, default=plan.check, help="iterations between points of the score curve")
    refine = REFINEMENT.iterations
    parser.add_argument(
        "--refine", type=int, default=refine, help=f"iterations of the decoder alone (default {refine})"
    )
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    device, out, stage = torch.device(options.device), options.out, options.stage
    if options.vae_phases:
        frames = [tuple(map(int, phase.split(":"))) for phase in options.vae_phases]
        vae_plan = replace(vae_plan, phases=tuple((f, b, i) for f, b, i in frames))
    given = ("iterations", "batch", "clips", "rate", "check")
    refinement = replace(REFINEMENT, phases=((*REFINEMENT.phases[0][:2], options.refine),))
    plan = replace(plan, **{name: getattr(options, name) for name in given})

    if stage == "export":
        _export_states(out, options.weights or out / "weights")
        return
    vae = train_vae(out, device, vae_plan, options.minutes)
    if vae is None or stage == "vae":
        return
    if stage != "decoder" and train_transformer(out, vae, device, plan, options.minutes) is None:
        return
    if stage == "transformer" or not refine_decoder(out, vae, refinement, options.minutes):
        return
    if stage == "all":
        _export_states(out, options.weights or out / "weights")


def _export_states(out: Path, weights: Path) -> None:
    """Export the states as they stand; the transformer may be on its way, the autoencoder must be done."""
    states: dict[str, dict[str, Any]] = {}
    for stage in ("vae", "transformer"):
        state = Journal(out, stage).resume()
        if state is None:
            raise SystemExit(f"{out / f'{stage}.pt'} is missing: train the stage {stage!r} first")
        states[stage] = state
    if not states["vae"]["done"]:
        raise SystemExit("the autoencoder is still in training, its latents have no scale yet")
    vae, model = build_vae(), TextToVideo(len(build_tokenizer()))
    vae.load_state_dict((Journal(out, "decoder").resume() or states["vae"])["model"])
    model.load_state_dict(states["transformer"]["average"])
    size = export(weights, vae, model)
    print(f"exported {size:,} bytes to {weights}, transformer at iteration {states['transformer']['iteration']}")


if __name__ == "__main__":
    main()
