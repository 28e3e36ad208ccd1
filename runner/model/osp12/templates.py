"""The prompt texts that Open-Sora-Plan v1.2 and its guides wrap around a user's words, exactly; needs no torch.

A template holds one {} where the prompt goes. The pipeline applies none: what it is given is what it encodes.
"""

PLAIN = "\n    (masterpiece), (best quality), (ultra-detailed), \n    {}. \n    "

UNWATERMARKED = (
    "\n    (masterpiece), (best quality), (ultra-detailed), (unwatermarked), \n    {}. \n"
    "    emotional, harmonious, vignette, 4k epic detailed, shot on kodak, 35mm photo, \n"
    "    sharp focus, high budget, cinemascope, moody, epic, gorgeous\n    "
)

# The reference's negative prompt, the same with both; conf/model/osp12.yaml holds it as the default of its key.
NEGATIVE = (
    "\n    nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, "
    "worst quality, \n    low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry.\n    "
)

TEMPLATES = {"plain": PLAIN, "unwatermarked": UNWATERMARKED}


def apply_template(prompt: str, template: str) -> str:
    """`prompt` in a template: a name of TEMPLATES, or a text of your own with one {}. Raises ValueError on another."""
    text = TEMPLATES.get(template, template)
    if text.count("{}") != 1:
        raise ValueError(
            f"prompt template {template!r} is neither one of {', '.join(TEMPLATES)} nor a text with one {{}}"
        )
    return text.replace("{}", prompt)
