"""Cleaning of captions, as those that Open-Sora-Plan v1.2 and Open-Sora 1.2 were trained on were cleaned.

The order of the rules matters, and so do their quirks (one final hyphen goes, "jpeg artifacts" loses a word): the
embeddings of a prompt depend on them.
"""

import html
import re
import warnings
from urllib.parse import unquote_plus

import ftfy
from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

_DOMAIN = r"[a-z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_MEDIA = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = (
    r"\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    r"\ufe31\ufe32\ufe58\ufe63\uff0d"
)


def _rules(*rules: tuple[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


_MARKUP = _rules(
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{_DOMAIN})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{_DOMAIN})", ""),
)
_NAMES = _rules((r"@\w+\b", ""))
_STROKES = _rules((r"[\u31c0-\u4dff]+", ""))  # CJK strokes to Yijing hexagrams; the ideographs from 4e00 on stay
_IDEOGRAPHS = _rules((r"[\u31c0-\u9fff]+", ""))
_SYMBOLS = _rules(
    (rf"[{_DASHES}]+", "-"),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # internet addresses
    (r"\d:\d\d\s+$", ""),  # a time or article number at the end
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_MEDIA})", ""),  # file names
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_WORD_JOINERS = re.compile(r"[-_]")
_CODES = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_MEDIA})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # 1920x1080, with the Latin, the Cyrillic and the sign
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
_ENDS = _rules(
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(text: str, ideographs: bool = True) -> str:
    """The caption in lower case, without addresses, markup, file names and codes, and without Chinese characters
    unless they may stay (Open-Sora-Plan keeps them, Open-Sora does not).

    The rules run twice, as in the references: what the first pass removes can bring together what the second must see.
    The result can be empty.
    """
    return _pass(_pass(text, ideographs), ideographs)


def normalize_caption(text: str) -> str:
    """What is done instead when cleaning is off: lower case, no outer white space."""
    return text.lower().strip()


def _pass(text: str, ideographs: bool) -> str:
    text = _apply(_MARKUP, unquote_plus(text).strip().lower())
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", MarkupResemblesLocatorWarning
        )  # a caption that looks like a file name is a caption
        text = BeautifulSoup(text, features="html.parser").text
    text = _apply([*_NAMES, *(_STROKES if ideographs else _IDEOGRAPHS), *_SYMBOLS], text)
    if len(_WORD_JOINERS.findall(text)) > 3:  # this-is-my-cute-cat
        text = _WORD_JOINERS.sub(" ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _apply(_ENDS, _apply(_CODES, text)).strip()


def _apply(rules: list[tuple[re.Pattern[str], str]], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
