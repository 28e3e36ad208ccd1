"""An override that does not parse is named, with the place where it goes wrong and advice that is for its kind."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from runner.__main__ import door
from runner.config.overrides import KEY, unparsed

ADVICE = "needs quotes of its own"
KINDS = {
    # override: the character where it goes wrong, what is said, whether quotes inside quotes would help
    r"quant\.observer=mse": (6, "no key has '\\\\' there; did you mean quant.observer=mse?", False),
    "quant.observer =mse": (15, "no key has ' ' there; did you mean quant.observer=mse?", False),
    "quant..observer=mse": (6, "did you mean quant.observer=mse?", False),
    "quant:observer=mse": (6, "did you mean quant.observer=mse?", False),
    "=x": (1, "a key is missing before =", False),
    "+=x": (1, "a key is missing before =", False),
    "~": (1, "a key is missing before =", False),
    "@a=1": (1, "expected key=value", False),
    "quant.include=[1": (15, "the [ is never closed", True),
    "model.call={a:1": (12, "the { is never closed", True),
    "seed=choice(1,2": (12, "the ( is never closed", True),
    "quant.include=[a,b]]": (20, "the ] closes nothing", True),
    "prompts.text=a cat (asleep)": (20, "the ( stands within a text", True),
    "quant.include=[a,]": (17, "nothing stands on one side of the comma", True),
    "prompts.text=a red, blue = x": (26, "a second =", True),
    "seed=1 name=x": (12, "two overrides are two arguments", True),
    "prompts.text='a cat": (14, "the quote ' is never closed", False),
    'prompts.text="a cat': (14, 'the quote " is never closed', False),
    "prompts.text=it's": (16, "the quote ' stands within a text; a text with quotes", True),
    'prompts.text="a" cat': (18, "nothing may follow a closing quote", False),
    "prompts.text=a cat!": (19, "'!' is for texts in quotes alone", False),
    "prompts.text=caf\u00e9": (17, "is for texts in quotes alone", False),
    "name=${output": (6, "the ${ is never closed", False),
    "seed=foo(1)": (6, "Unknown function 'foo'", True),
    "seed=int(x)": (6, "invalid literal for int() with base 10: 'x'", True),
}


def parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([override])
    except OverrideParseException:
        return False
    return True


@pytest.mark.parametrize("override", KINDS)
def test_each_kind_is_named_with_its_place_and_its_advice(override):
    at, says, quotes = KINDS[override]
    (fault,) = unparsed(["+recipe=osp12_w8a8", override, "quant.percentile=99.5"])
    said = str(fault)
    assert said.startswith(f"{override}: this does not parse at character {at}: ") and says in said
    assert (ADVICE in said) == quotes


@pytest.mark.parametrize(
    "override",
    [
        *("+recipe=osp12_w8a8", "++a.b-c=2", "hydra/launcher=joblib", "~seed", "~seed=1", "seed=", "a=-"),
        *('prompts.text="a cat, (asleep)"', r"prompts.text=a cat\, asleep", "prompts.text=a: cat", "seed=range(1,5)"),
        *("quant.include=[a,[b,c]]", "model.call={a:1,b:[1,2]}", "prompts.text='it\\'s'", "name=${output}", "a=1,2"),
    ],
)
def test_what_parses_is_not_refused(override):
    assert parses(override) and unparsed([override]) == []


def test_flags_and_their_values_are_not_judged():
    assert unparsed(["--cfg", "job", "-m", "--config-dir=(a", "seed=1"]) == []


def test_it_judges_as_hydra_does():
    """On overrides of random characters; a place that is pointed at lies within the override or at its end."""
    draw, seen = random.Random(0), {True: 0, False: 0}
    for _ in range(3000):
        override = "seed=" + "".join(draw.choice("ab1 ,:=[](){}\"'\\!$.") for _ in range(draw.randint(1, 7)))
        faults = unparsed([override])
        assert bool(faults) != parses(override), override
        seen[bool(faults)] += 1
        for fault in faults:
            at = int(fault.expected.partition("character ")[2].partition(":")[0])
            assert 6 <= at <= len(override) + 1, override
    assert min(seen.values()) > 300


@pytest.mark.parametrize("key", ["seed", "+recipe", "++a.b", "~a", "hydra/launcher", "$a", "model@b.c", "a-b", "a.0"])
def test_keys_of_hydra_are_keys(key):
    assert KEY.fullmatch(key) and parses(f"{key}=1")


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"]], ids=["run", "sweep"])
@pytest.mark.parametrize("override", [r"quant\.observer=mse", "a=[1", "=x", "+=x", "prompts.text='a", "seed"])
def test_the_door_names_it(capsys, override, sweep):
    assert door([*sweep, "+recipe=osp12_w8a8", override]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"refused: {override}: this does not parse at character ")
    assert "\n" not in printed.err.strip() and printed.out == "" and not Path("outputs").exists()


def test_the_door_names_all(capsys):
    assert door(["+recipe=osp12_w8a8", "a=[1", "seed=3", "b=x)"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("refused: 2 faults:\n  a=[1: ") and "\n  b=x): " in said


def test_values_that_a_recipe_sweeps_over(capsys):
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text("hydra:\n  sweeper:\n    params:\n      seed: 1,(2\n")
    assert door(["-m", "+recipe=mine"]) == 2
    assert capsys.readouterr().err.startswith("refused: seed=1,(2: this does not parse at character 8: the ( ")
