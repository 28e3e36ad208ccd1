"""Which prompts dump runs, in which batches, and msModelSlim's calibration files."""

from runner.stages.dump import batches, parts


def test_one_run_serves_calibration_and_reference():
    (one, two) = parts({"calibration": ["a", "b"], "text": ["a", "b"]}, 7, 1)
    assert (one.prompt, one.seed, one.roles) == ("a", 7, ["calibration", "text"])
    assert (two.prompt, two.seed, two.folder) == ("b", 8, "prompt-001")


def test_the_same_prompt_at_another_place_has_another_seed_and_is_another_run():
    found = parts({"calibration": ["a", "b"], "text": ["b"]}, 7, 1)
    assert [(p.prompt, p.seed, p.roles) for p in found] == [
        ("a", 7, ["calibration"]),
        ("b", 8, ["calibration"]),
        ("b", 7, ["text"]),
    ]


def test_recorded_prompts_run_alone_and_references_in_batches():
    found = parts({"calibration": ["a"], "text": ["a", "b", "c"]}, 7, 2)
    assert [[p.prompt for p in batch] for batch in batches(found, 2)] == [["a"], ["a", "b"], ["c"]]


def test_verification_is_a_run_of_its_own_with_seeds_of_its_own():
    one, two, three = parts({"calibration": ["a"], "verification": ["a"], "text": ["a", "b"]}, 7, 1)
    assert (one.roles, one.seed) == (["calibration", "text"], 7)
    assert (two.prompt, two.roles) == ("a", ["verification"]) and two.seed not in (one.seed, three.seed)
    assert [[p.prompt for p in batch] for batch in batches([one, two, three], 2)] == [["a"], ["a"], ["b"]]
