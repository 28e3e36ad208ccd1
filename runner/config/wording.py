"""Numbers as pages and plans say them: few digits, a unit, real minus and multiplication signs. None is an en dash."""

import math

NARROW = "\u202f"  # a thin space that does not break: between a number and its unit
MINUS = "\u2212"
UNKNOWN = "–"


def plain(text: str) -> str:
    """The same for a terminal, which may know no thin space."""
    return text.replace(NARROW, " ")


def seconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if value < 0.9995:
        return f"{digits(value * 1000)}{NARROW}ms"
    if value < 59.95:
        return f"{digits(value)}{NARROW}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{NARROW}min {rest:02d}{NARROW}s"
    return f"{minutes // 60}{NARROW}h {minutes % 60:02d}{NARROW}min"


def size(value: float | None) -> str:
    """Bytes in powers of 1000, as disks and downloads are counted."""
    return _scaled(value, "B", ("", "k", "M", "G", "T"))


def lacks(takes: int, whose: str, there: int) -> str:
    """That something probably takes more memory than there is, for a terminal."""
    return plain(f"takes about {size(takes)}, and {whose} has {size(there)}")


def flops(value: float | None) -> str:
    return _scaled(value, "FLOP", ("", "k", "M", "G", "T", "P"))


def share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:.1f}%"


def times(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}×"


def decibel(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return "∞" if value == math.inf else f"{value:.1f}{NARROW}dB".replace("-", MINUS)


def score(value: float | None, unit: float = 1) -> str:
    """A score whose best is `unit`, on a scale of 100."""
    return UNKNOWN if value is None else f"{100 * value / unit:.1f}"


def points(value: float | None, unit: float = 1) -> str:
    """A difference of such scores, signed."""
    if value is None:
        return UNKNOWN
    rounded = round(100 * value / unit, 1)
    return f"{abs(rounded):.1f}" if rounded == 0 else f"{rounded:+.1f}".replace("-", MINUS)


def count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{round(value):,}"


def digits(value: float | None) -> str:
    """Three significant digits, never an exponent."""
    if value is None:
        return UNKNOWN
    magnitude = abs(value)
    places = 0 if magnitude >= 99.95 else 1 if magnitude >= 9.995 else 2 if magnitude >= 0.9995 else 3
    if 0 < magnitude < 0.0995:
        places = 4
    return f"{value:,.{places}f}".replace("-", MINUS)


def _scaled(value: float | None, unit: str, prefixes: tuple[str, ...]) -> str:
    if value is None:
        return UNKNOWN
    for prefix in prefixes:
        if abs(value) < 999.5 or prefix == prefixes[-1]:
            number = f"{value:.0f}" if not prefix else digits(value)
            return f"{number}{NARROW}{prefix}{unit}"
        value /= 1000
    raise AssertionError("the last prefix takes every value")
