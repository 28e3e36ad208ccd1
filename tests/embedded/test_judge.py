import time

import numpy as np
import pytest

from runner.embedded import world
from runner.embedded.judge import NONE, judge, score


@pytest.fixture(scope="module")
def clips() -> list[tuple[np.ndarray, str]]:
    rng = np.random.default_rng(11)
    return [(world.render(world.scene(each, rng)), world.caption(each)) for each in world.combinations() * 3]


def test_rendered_clips_are_seen_as_drawn(clips: list) -> None:
    right = [judge(frames) == world.parse(text) for frames, text in clips]
    assert len(right) >= 300 and np.mean(right) >= 0.99


def test_shuffled_captions_score_at_chance(clips: list) -> None:
    chance = (1 / len(world.SHAPES) + 1 / len(world.COLORS) + 1 / len(world.MOTIONS)) / 3
    order = np.random.default_rng(0).permutation(len(clips))
    scores = [score(clips[i][0], clips[j][1]) for i, j in enumerate(order)]
    assert abs(np.mean(scores) - chance) < 0.05


def test_a_wrong_attribute_costs_a_third() -> None:
    frames = world.render(world.scene(world.parse("a red circle moving left"), np.random.default_rng(0)))
    assert score(frames, "a red circle moving left") == 1
    assert score(frames, "a red square moving left") == pytest.approx(2 / 3)
    assert score(frames, "a blue square moving left") == pytest.approx(1 / 3)
    assert score(frames, "a blue square growing") == 0


@pytest.mark.parametrize("seed", range(5))
def test_noise_shows_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (17, 64, 64, 3)
    coarse = rng.normal(128, 60, (5, 8, 8, 3)).repeat(4, 0)[:17].repeat(8, 1).repeat(8, 2)
    for noise in (rng.uniform(0, 255, shape), rng.normal(128, 40, shape), coarse, np.full(shape, rng.uniform(0, 255))):
        assert judge(noise.clip(0, 255).astype(np.uint8)) == NONE


def test_frames_in_a_random_order_do_not_move(clips: list) -> None:
    rng = np.random.default_rng(5)
    for frames, text in clips[:12]:
        if text.endswith(("left", "right", "up", "down")):
            assert judge(frames[rng.permutation(17)]).motion != world.parse(text).motion


def test_rendered_stills_are_seen_as_drawn_and_noise_is_not() -> None:
    rng = np.random.default_rng(11)
    drawn = [(each, world.still(each, rng)[None]) for each in world.combinations(motions=world.PLACES) * 2]
    assert np.mean([judge(picture) == each for each, picture in drawn]) >= 0.99
    assert score(drawn[0][1], "a blue circle on the right") == pytest.approx(1 / 3)
    for _ in range(5):
        noise = rng.normal(128, 60, (1, 8, 8, 3)).repeat(8, 1).repeat(8, 2)
        assert judge(noise.clip(0, 255).astype(np.uint8)) == NONE
        assert judge(rng.integers(0, 256, (1, 64, 64, 3), np.uint8)) == NONE


def test_a_reversed_clip_moves_the_other_way() -> None:
    frames = world.render(world.scene(world.parse("a cyan cross moving up"), np.random.default_rng(2)))
    assert judge(frames[::-1]).motion == "moving down"


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="64"):
        judge(np.zeros((17, 32, 32, 3), np.uint8))


def test_a_clip_takes_milliseconds(clips: list) -> None:
    start = time.process_time()
    for frames, _ in clips[:30]:
        judge(frames)
    assert (time.process_time() - start) / 30 < 0.05  # about 4 ms; room for a busy machine
