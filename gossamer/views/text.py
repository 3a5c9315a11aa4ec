"""Token text made visible: what `web/tokens.js` does in the browser, for what Python writes."""

import unicodedata

MARKS = {"\n": "⏎", "\t": "⇥", "␤": "⏎", "␉": "⇥"}
"""Signs that common fonts have, also for the control pictures that labels are written with."""

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}
"""Unicode categories that are not seen, or that move the text around them."""


def show_token(token: str) -> str:
    """The token with nothing invisible: outer spaces as ␣, controls and direction marks as code
    points, an empty token as ∅."""
    body = token.strip(" ")
    if not body:
        return "␣" * len(token) or "∅"
    before = len(token) - len(token.lstrip(" "))
    after = len(token) - before - len(body)
    return "␣" * before + "".join(map(_visible, body)) + "␣" * after


def _visible(character: str) -> str:
    if character in MARKS:
        return MARKS[character]
    if character != " " and unicodedata.category(character) in HIDDEN:
        return f"⟨{ord(character):X}⟩"
    return character
