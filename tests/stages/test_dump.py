"""Which prompts dump runs, in which batches, and msModelSlim's calibration files."""

from runner.stages.dump import batches, parts


def config(calibration, text, batch_size=1, scheme="w8a8", compare=True, source=None):
    return {
        "seed": 7,
        "prompts": {"calibration": calibration, "text": text},
        "quant": {"scheme": scheme},
        "dump": {"from": source},
        "sample": {"compare": compare},
        "model": {"batch_size": batch_size},
    }


def test_one_run_serves_calibration_and_reference():
    (one, two) = parts(config(["a", "b"], ["a", "b"]))
    assert (one.prompt, one.seed, one.roles) == ("a", 7, ["calibration", "text"])
    assert (two.prompt, two.seed, two.folder) == ("b", 8, "prompt-001")


def test_the_same_prompt_at_another_place_has_another_seed_and_is_another_run():
    found = parts(config(["a", "b"], ["b"]))
    assert [(p.prompt, p.seed, p.roles) for p in found] == [
        ("a", 7, ["calibration"]),
        ("b", 8, ["calibration"]),
        ("b", 7, ["text"]),
    ]


def test_recorded_prompts_run_alone_and_references_in_batches():
    found = parts(config(["a"], ["a", "b", "c"], batch_size=2))
    assert [[p.prompt for p in batch] for batch in batches(found, 2)] == [["a"], ["a", "b"], ["c"]]


def test_what_nobody_needs_is_not_run():
    assert [p.roles for p in parts(config(["a"], ["b"], compare=False))] == [["calibration"]]
    assert [p.roles for p in parts(config(["a"], ["b"], scheme="none"))] == [["text"]]
    assert [p.roles for p in parts(config(["a"], ["b"], source="/x/calib_data.pth"))] == [["text"]]
