import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.model.caption import clean_caption, normalize_caption
from runner.model.osp12 import rules
from runner.model.osp12.templates import NEGATIVE, TEMPLATES, apply_template

ROOT = Path(__file__).parents[3]
PAIRS = json.loads((ROOT / "tests/data/osp12/pipeline/text.json").read_text())
ARGS = json.loads((ROOT / "tests/data/osp12/pipeline/args.json").read_text())["ddim5"]


@pytest.mark.parametrize("pair", PAIRS, ids=range(len(PAIRS)))
def test_captions_are_cleaned_as_in_the_reference(pair):
    assert clean_caption(pair["input"]) == pair["clean"]
    assert normalize_caption(pair["input"]) == pair["noclean"]


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("a <person> on a <b>bike</b>", "a person on a bike"),
        ("see https://www.example.com/cat.jpg now", "see now"),
        ("look at www.example.org/pictures please", "look at please"),
        ("by @artist and friends", "by and friends"),
        ("㊀ ㇀ ㏂ 㐀 ䷀ 猫", "猫"),
        ("one – two — three", "one - two - three"),
        ("call 192.168.0.1 or #12 or #12345 or 1234567", "call or or or"),
        ("my_file.png of a cat", "of a cat"),
        ("wait... what", "wait what"),
        ("(one) [two] {three} |four| *five*", "one two three four five"),
        ("this-is-my-cute-cat", "this is my cute cat"),
        ("a well-known cat", "a well-known cat"),
        ("fish &amp; chips", "fish chips"),
        ("a lamp jc6640 and 6640vc231", "a lamp and"),
        ("worldwide free shipping of cats, free download", "of cats"),
        ("click for more cats on page 12", "cats on"),
        ("1920x1080 video", "video"),
        ("red,blue", "red, blue"),
        ("'quoted'", "quoted"),
        (".hidden", ""),
        ("trailing-", "trailing"),
        ("", ""),
    ],
)
def test_each_rule(caption, cleaned):
    assert clean_caption(caption) == cleaned


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60))
def test_any_text_is_cleaned_quietly_and_comes_out_tidy(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cleaned = clean_caption(text)
    assert cleaned == cleaned.strip() and "  " not in cleaned and "\n" not in cleaned


@settings(deadline=None, max_examples=200)
@given(st.text("abcABC.,:;!?()[]{}/\\*|#@\"'-_ ~§", max_size=60))
def test_ascii_text_comes_out_lower_case_without_bad_punctuation(text):
    cleaned = clean_caption(text)
    assert cleaned == cleaned.lower()
    assert not set(cleaned) & set("()[]{}/\\*|#@~§")


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from("a red blue circle moving slowly left over water".split()), min_size=1, max_size=9),
    st.sampled_from("example.com http://a.net/b https://x.org www.cats.ru/pictures".split()),
    st.integers(0, 9),
)
def test_plain_words_stay_and_addresses_go(words, address, place):
    sentence = " ".join(words)
    assert clean_caption(sentence) == sentence
    words.insert(place, address)
    assert clean_caption(" ".join(words)) == sentence


def test_the_templates_are_the_reference_s():
    assert apply_template("A young man at his 20s is sitting on a piece of cloud in the sky, reading a book.", "plain") == ARGS["prompt"]  # fmt: skip  # noqa: E501
    assert NEGATIVE == ARGS["negative_prompt"]
    cleaned = clean_caption(apply_template("a cat", "unwatermarked"))
    assert cleaned == (
        "masterpiece , best quality , ultra-detailed , unwatermarked , a cat. emotional, harmonious, vignette, 4k epic "
        "detailed, shot on kodak, 35mm photo, sharp focus, high budget, cinemascope, moody, epic, gorgeous"
    )


def test_a_template_of_one_s_own_takes_the_prompt_as_it_is():
    assert apply_template("a {cat} of 100%", "My {}, please") == "My a {cat} of 100%, please"
    for wrong in ("plian", "no place", "{} and {}"):
        with pytest.raises(ValueError, match="plain, unwatermarked"):
            apply_template("a cat", wrong)


def test_the_rules_know_the_templates():
    assert set(rules.TEMPLATES) == set(TEMPLATES)


def test_templates_and_rules_need_no_torch():
    code = "import sys, runner.model.osp12.templates, runner.model.osp12.rules; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
