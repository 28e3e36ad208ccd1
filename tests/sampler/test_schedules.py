"""Schedule files: what is read, what is refused with which words."""

import json

import pytest

from runner.sampler import schedules


def test_what_is_written_is_read_again_to_the_last_bit(tmp_path):
    import numpy as np

    timesteps = [float(t) for t in np.linspace(0, 999, 100, dtype=np.float32)[::-1]]
    schedules.write(timesteps, tmp_path / schedules.NAME)
    entries = json.loads((tmp_path / schedules.NAME).read_text())
    assert entries == sorted(entries) and (entries[0], entries[-1]) == (0.0, 0.999)
    back = np.array(schedules.timesteps(tmp_path / schedules.NAME), dtype=np.float32)
    assert (back == np.array(timesteps, dtype=np.float32)).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[0.1, 0.2", "is no JSON: .* line 1, column 10"),
        ('{"a": 1}', "holds no list but keys and values"),
        ("null", "holds no list but null"),
        ("[]", "holds 0 entries; expected at least 2"),
        ("[0.5]", "holds 1 entry; expected at least 2"),
        ('[0.1, "0.2"]', 'entry 1 is "0.2", not a number'),
        ("[0.1, true]", "entry 1 is true, not a number"),
        ("[0.1, NaN]", "entry 1 is NaN, not a number"),
        ("[-0.1, 0.2]", r"entry 0 is -0.1, outside \[0, 1\]"),
        ("[0, 500, 999]", r"entry 1 is 500, outside \[0, 1\]: entries are timesteps divided by 1000"),
        ("[0.1, 0.3, 0.2]", "entry 2 is 0.2, not above entry 1, 0.3"),
        ("[0.1, 0.1]", "entry 1 is 0.1, not above entry 0, 0.1"),
    ],
)
def test_a_bad_file_is_refused_with_what_is_wrong_where(tmp_path, text, words):
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        schedules.read(tmp_path / "bad.txt")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"[0.1, \xff]")
    with pytest.raises(ValueError, match="is no text"):
        schedules.read(tmp_path / "bad.txt")
