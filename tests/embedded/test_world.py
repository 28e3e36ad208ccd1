import numpy as np
import pytest

from runner.embedded import world


def test_the_same_generator_state_draws_the_same_clip() -> None:
    first, second = (world.sample(np.random.default_rng(3), "all") for _ in range(2))
    assert first[1] == second[1]
    assert np.array_equal(first[0], second[0])
    assert first[0].shape == (17, 64, 64, 3) and first[0].dtype == np.uint8
    assert not np.array_equal(first[0], world.sample(np.random.default_rng(4), "all")[0])


def test_captions_and_attributes_are_two_forms_of_one_thing() -> None:
    captions = world.captions()
    assert len(set(captions)) == len(captions) == 4 * 6 * 6
    assert [world.parse(text) for text in captions] == world.combinations()
    assert world.caption(world.Attributes("circle", "red", "moving left")) == "a red circle moving left"


@pytest.mark.parametrize("text", ["", "a red circle", "red circle moving left now", "a pink circle growing"])
def test_what_is_no_caption_is_refused_by_its_text(text: str) -> None:
    with pytest.raises(ValueError, match="not a caption"):
        world.parse(text)


def test_the_split_is_whole_and_shows_training_every_pair_but_not_every_triple() -> None:
    assert set(world.SEEN) | set(world.UNSEEN) == set(world.combinations())
    assert not set(world.SEEN) & set(world.UNSEEN)
    assert 0.15 <= len(world.UNSEEN) / len(world.combinations()) <= 0.25
    for index, values in enumerate((world.SHAPES, world.COLORS, world.MOTIONS)):
        for value in values:
            others = {tuple(a for i, a in enumerate(each) if i != index) for each in world.SEEN if each[index] == value}
            assert len(others) >= 16
    # A shape can be told from the others under every color and motion: at most one of the four is new there.
    unseen_pairs = [each[1:] for each in world.UNSEEN]
    assert len(set(unseen_pairs)) == len(unseen_pairs)


def test_an_object_moves_where_its_caption_says_and_stays_in_the_frame() -> None:
    rng = np.random.default_rng(0)
    for attributes in world.combinations():
        scene = world.scene(attributes, rng)
        alpha = world.coverage(
            attributes.shape, *np.array([[*scene.start, scene.radius[0]], [*scene.end, scene.radius[1]]]).T
        )
        assert alpha.sum((1, 2)).min() > 60
        step = np.sign(np.array(scene.end) - scene.start)
        assert tuple(step) == world.DIRECTIONS.get(attributes.motion, (0, 0))
        border = np.concatenate(
            [alpha[:, 0].ravel(), alpha[:, -1].ravel(), alpha[:, :, 0].ravel(), alpha[:, :, -1].ravel()]
        )
        assert (border > 0).mean() < 0.1


def test_a_window_is_a_part_of_the_clip() -> None:
    scene = world.scene(world.SEEN[5], np.random.default_rng(1))
    assert np.array_equal(world.render(scene)[4:9], world.render(scene, slice(4, 9)))


def test_stills_are_captioned_by_their_place_and_split_like_clips() -> None:
    seen, unseen = (world.combinations(split, world.PLACES) for split in ("seen", "unseen"))
    assert len(seen) + len(unseen) == len(set(seen + unseen)) == 144
    assert [index for index, each in enumerate(world.combinations()) if each in world.UNSEEN] == [
        index for index, each in enumerate(world.combinations(motions=world.PLACES)) if each in unseen
    ]
    assert world.parse("a red circle on the left") == world.Attributes("circle", "red", "on the left")
    rng = np.random.default_rng(0)
    for each in seen:
        picture = world.still(each, rng)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
