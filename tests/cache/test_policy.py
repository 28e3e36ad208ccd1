"""What a configuration decides, and the files that hold it: msModelSlim's, MindIE-SD's, and segments."""

import json

import pytest

from runner.cache.policy import Policy, Rectangle, Segment, Segments, parse, read, write

THEIRS = {"cache_step_start": 2, "cache_step_interval": 3, "cache_block_start": 1, "cache_num_blocks": 2}


def test_a_rectangle_keeps_every_interval_from_its_start():
    policy = Rectangle(2, 3, 1, 2).policy(8, 4)
    assert policy.ranges == (None, None, None, (1, 3), (1, 3), None, (1, 3), (1, 3))
    assert [policy.kept(t) for t in range(8)] == [None, None, (1, 3), None, None, (1, 3), None, None]
    assert [policy.reuses(b, 3) for b in range(4)] == [False, True, True, False]
    assert policy.skipped() == 8 and policy.source(4) == 2 and policy.source(7) == 5


@pytest.mark.parametrize(("first", "count"), [(0, 4), (3, 1), (0, 0), (2, 2)])
def test_ranges_that_touch_the_ends_fit(first, count):
    assert Rectangle(0, 2, first, count).policy(4, 4).skipped() == 2 * count


def test_a_range_beyond_the_last_block_is_refused():
    with pytest.raises(ValueError, match="blocks 3 to 4 are to be reused; the model has 4"):
        Rectangle(0, 2, 3, 2).policy(4, 4)


def test_segments_have_a_range_each():
    segments = Segments(7, (Segment(1, 2, 0, 3), Segment(5, 1, 2, 2)))
    policy = segments.policy(7, 4)
    assert policy.ranges == (None, None, (0, 3), (0, 3), None, None, (2, 4))
    assert Segments.of(policy) == segments


@pytest.mark.parametrize(
    ("segments", "says"),
    [
        ((Segment(1, 2, 0, 1), Segment(3, 1, 0, 1)), "the segment at step 3 overlaps"),
        ((Segment(5, 2, 0, 1),), "the segment at step 5 overlaps another or leaves the 7 steps"),
        ((Segment(1, 2, 3, 2),), "blocks 3 to 4"),
    ],
)
def test_segments_that_do_not_fit_are_refused(segments, says):
    with pytest.raises(ValueError, match=says):
        Segments(7, segments).policy(7, 4)
    with pytest.raises(ValueError, match="for 7 steps; this run has 8"):
        Segments(7, ()).policy(8, 4)


def test_files_come_back(tmp_path):
    for config in (Rectangle(2, 3, 1, 2), Segments(7, (Segment(1, 2, 0, 3),))):
        write(config, tmp_path / "c.json")
        assert read(tmp_path / "c.json") == config
    write(Rectangle(2, 3, 1, 2), tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text()) == THEIRS


def test_mindie_sd_counts_the_end():
    theirs = {"method": "dit_block_cache", "blocks_count": 28, "steps_count": 50, "step_end": 10000}
    assert parse({**theirs, "step_start": 2, "step_interval": 3, "block_start": 1, "block_end": 3}) == parse(THEIRS)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({**THEIRS, "cache_num_block": 1}, "'cache_num_block' is not known"),
        ({**THEIRS, "cache_num_blocks": -1}, "cache_num_blocks is -1; expected a whole number"),
        ({**THEIRS, "cache_num_blocks": True}, "cache_num_blocks is True"),
        ({**THEIRS, "cache_step_interval": 0}, "must be at least 1"),
        ({name: THEIRS[name] for name in list(THEIRS)[:3]}, "cache_num_blocks is None"),
        ({"step_start": 1, "step_interval": 2, "block_start": 5, "block_end": 3}, "before block_start 5"),
        ({"cache_num_steps": 5, "cache_segments": {}}, "no list of objects"),
        ([1, 2], "no JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path, content, says):
    file = tmp_path / "c.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=says) as caught:
        read(file)
    assert str(file) in str(caught.value)


def test_an_interval_of_one_reuses_nothing():
    assert Rectangle(0, 1, 0, 4).policy(5, 4) == Policy((None,) * 5)
