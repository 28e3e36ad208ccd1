"""Sizes and lengths that Open-Sora 1.2 is asked for by name, and the latents that they make. Needs no torch.

An aspect ratio is height to width, as released: "9:16" is the landscape one, 144x256 at 144p.
"""

from __future__ import annotations

import math

RATIOS = (
    "3:8", "9:21", "12:25", "1:2", "9:17", "27:50", "9:16", "5:8", "2:3", "3:4", "1:1", "4:3", "3:2", "16:9", "17:9",
    "2:1", "50:27",
)  # fmt: skip
# How the reference writes each ratio in its tables: rounded, and the last one wrong.
ASPECT_RATIO_MAP = {ratio: f"{int(ratio.split(':')[0]) / int(ratio.split(':')[1]):.2f}" for ratio in RATIOS}
ASPECT_RATIO_MAP["50:27"] = "2.08"


def _row(sizes: str, ratios: tuple[str, ...] = RATIOS) -> dict[str, tuple[int, int]]:
    pairs = [size.partition("x") for size in sizes.split()]
    return {ratio: (int(height), int(width)) for ratio, (height, _, width) in zip(ratios, pairs, strict=True)}


# (height, width) by resolution and ratio. Of the resolutions without a "p" or a "k" the released table knows one ratio.
ASPECT_TABLES: dict[str, dict[str, tuple[int, int]]] = {
    "144p": _row(
        "117x312 125x291 133x277 135x270 139x262 141x260 144x256 151x241 156x234 166x221 192x192 221x165 235x156 "
        "256x144 263x139 271x135 277x132"
    ),
    "256": _row("176x368", ("12:25",)),
    "240p": _row(
        "196x522 210x490 222x462 226x452 232x438 236x436 240x426 252x404 262x393 276x368 320x320 370x278 392x262 "
        "426x240 440x232 452x226 462x222"
    ),
    "360p": _row(
        "294x784 314x732 332x692 340x680 350x662 352x652 360x640 380x608 392x588 416x554 480x480 554x416 588x392 "
        "640x360 660x350 678x340 692x332"
    ),
    "512": _row("352x736", ("12:25",)),
    "480p": _row(
        "392x1046 420x980 444x925 452x904 466x880 470x870 480x854 506x810 522x784 554x738 640x640 740x555 784x522 "
        "854x480 880x466 906x454 924x444"
    ),
    "720p": _row(
        "588x1568 628x1466 666x1388 678x1356 698x1318 706x1306 720x1280 758x1212 784x1176 832x1110 960x960 1108x832 "
        "1176x784 1280x720 1320x698 1358x680 1386x666"
    ),
    "1024": _row("704x1472", ("12:25",)),
    "1080p": _row(
        "882x2352 942x2198 998x2080 1018x2036 1048x1980 1058x1958 1080x1920 1138x1820 1176x1764 1248x1664 1440x1440 "
        "1662x1246 1764x1176 1920x1080 1980x1048 2036x1018 2078x998"
    ),
    "2k": _row(
        "1176x3136 1256x2930 1330x2770 1358x2716 1398x2640 1412x2612 1440x2560 1518x2428 1568x2352 1662x2216 "
        "1920x1920 2218x1664 2352x1568 2560x1440 2638x1396 2716x1358 2772x1330"
    ),
    "2048": _row("1408x2944", ("12:25",)),
    "2880": {},
    "4k": _row(
        "1764x4704 1886x4400 1996x4158 2036x4072 2096x3960 2118x3918 2160x3840 2276x3642 2352x3528 2494x3326 "
        "2880x2880 3326x2494 3528x2352 3840x2160 3958x2096 4072x2036 4156x1994"
    ),
}
# Pixels of a frame, about; by which the reference sorts its training clips into resolutions.
NUM_PIXELS = {
    "144p": 36864, "256": 65536, "240p": 102240, "360p": 230400, "512": 262144, "480p": 409920, "720p": 921600,
    "1024": 1048576, "1080p": 2073600, "2k": 3686400, "2048": 4194304, "2880": 8294400, "4k": 8294400,
}  # fmt: skip

_LENGTHS = {"1x": 51, "2x": 102, "4x": 204, "8x": 408, "16x": 816, "2s": 51, "4s": 102, "8s": 204, "16s": 408}
NUM_FRAMES_MAP_UPSTREAM = {**_LENGTHS, "32s": 816}
NUM_FRAMES_MAP_ENFLAME = {**NUM_FRAMES_MAP_UPSTREAM, "1x": 40, "2s": 40}
LENGTHS = {"upstream": NUM_FRAMES_MAP_UPSTREAM, "enflame": NUM_FRAMES_MAP_ENFLAME}
SIZE_OVERRIDES: dict[str, dict[tuple[str, str], tuple[int, int]]] = {
    "upstream": {},
    "enflame": {("720p", "1:1"): (720, 720)},
}

SPACE_FACTOR = 8  # pixels a latent spans in height and in width
TIME_FACTOR = 4  # frames a latent frame holds
MICRO_FRAMES = 17  # frames that the VAE takes at a time
MICRO_LATENTS = 5  # latent frames that these become


def image_size(resolution: str, aspect_ratio: str, tables: str = "upstream") -> tuple[int, int]:
    """(height, width) in pixels, by the tables of `upstream` or of the `enflame` port. ValueError names the choices."""
    if resolution not in ASPECT_TABLES:
        raise ValueError(f"resolution is {resolution!r}; it must be one of {', '.join(ASPECT_TABLES)}")
    table = ASPECT_TABLES[resolution]
    if aspect_ratio not in table:
        choices = ", ".join(table) or "none: give height and width"
        raise ValueError(f"aspect_ratio is {aspect_ratio!r}; {resolution} has {choices} (height:width)")
    return SIZE_OVERRIDES[tables].get((resolution, aspect_ratio), table[aspect_ratio])


def frame_count(length: str | int, tables: str = "upstream") -> int:
    """Frames of a length: a number, or "2s" ... "32s", "1x" ... "16x" by the tables. ValueError names the choices."""
    lengths = LENGTHS[tables]
    if isinstance(length, str) and not length.isdecimal():
        if length not in lengths:
            raise ValueError(f"num_frames is {length!r}; it must be a number or one of {', '.join(lengths)}")
        return lengths[length]
    if int(length) < 1:
        raise ValueError(f"num_frames is {length}; it must be at least 1")
    return int(length)


def latent_sizes(frames: int, height: int, width: int, micro_frame_size: int = MICRO_FRAMES) -> tuple[int, int, int]:
    """Shape (frames, height, width) of the latents of a video. Each chunk of frames rounds up, each side down."""
    whole, rest = divmod(frames, micro_frame_size)
    chunk = math.ceil(micro_frame_size / TIME_FACTOR)
    return whole * chunk + math.ceil(rest / TIME_FACTOR), height // SPACE_FACTOR, width // SPACE_FACTOR


def dframe_to_frame(latent_frames: int) -> int:
    """Frames of whole chunks of latent frames. ValueError unless `latent_frames` is a multiple of 5."""
    if latent_frames % MICRO_LATENTS:
        raise ValueError(f"{latent_frames} latent frames are no whole chunks of {MICRO_LATENTS}")
    return latent_frames // MICRO_LATENTS * MICRO_FRAMES
