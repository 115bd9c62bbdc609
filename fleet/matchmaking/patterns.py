"""How much a regular expression costs. The library's engine (RE2) never goes back, so its time is bounded by the text
times the program that it makes of the pattern; but it makes that anew at each evaluation, and repetition multiplies it.
"""

import re

MAX_PATTERN = 200
ANY = 12  # instructions for a class of characters in UTF-8
_PART = re.compile(
    r"""
    (?P<repeat>\{(?P<least>\d{1,4})(?P<more>,(?P<most>\d{0,4}))?\}) | (?P<group>\(\?)
    | \[(?P<negated>\^?)(?P<inside>(?:\\[\[\]\\^.+*?(){}|$/-]|\\[dDwWsS]|[^\[\]\\])+)\]
    | \\(?P<escaped>.) | (?P<plain>.)""",
    re.VERBOSE | re.DOTALL,
)
_CLASSES, _LITERAL = frozenset("dDwWsSbB"), frozenset("[]\\^.+*?(){}|$/-")


class BadPattern(ValueError):
    """A pattern that we do not run; the message says why."""


def instructions(pattern: str) -> int:
    """At most so many instructions has the program of the pattern. What could be more than it looks is BadPattern."""
    if len(pattern) > MAX_PATTERN:
        raise BadPattern(f"a pattern has at most {MAX_PATTERN} characters")
    total, times, at = 1, 1, 0
    while at < len(pattern):
        part = _PART.match(pattern, at)
        if part is None:
            raise BadPattern(f"'{pattern[at : at + 10]}' is not taken in a pattern")
        at = part.end()
        if part["repeat"]:
            most = int(part["most"] or part["least"]) if part["more"] else int(part["least"])
            times *= max(1, most, int(part["least"])) + 1
        else:
            total += _atom(part)
    return total * times


def _atom(part: re.Match[str]) -> int:
    if part["group"]:
        raise BadPattern("'(?' is not taken in a pattern")
    if part["inside"] is not None:
        return ANY * (2 + len(part["inside"]))
    if (escaped := part["escaped"]) is not None:
        if escaped not in _CLASSES | _LITERAL:
            raise BadPattern(f"'\\{escaped}' is not taken in a pattern")
        return ANY
    if part["plain"] == "[":
        raise BadPattern("this class of characters ([...]) is not taken in a pattern")
    return ANY if part["plain"] == "." or not part[0].isascii() else 2
