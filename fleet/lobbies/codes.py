"""Invite codes that people can read to each other: `MEOW-42`.

Words are friendly ones of four letters; in random letters there are no vowels, so no word can come of them, and none of
the characters that are taken for another. What a player types is brought into the same shape first.
"""

from collections.abc import Callable, Container
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

RandBelow = Callable[[int], int]

_WORDS = """
MEOW BARK CHIP PUMA LYNX BEAR DUCK FROG GOAT HAWK KIWI LAMB LION MOLE MOTH NEWT ORCA PONY SEAL SWAN TOAD WOLF
WREN YETI CRAB DEER DOVE FAWN GULL HARE IBEX LARK MINK ORYX PIKE SLUG TERN TUNA VOLE WASP MINT PLUM PEAR LIME FIGS CORN
RICE TOFU TACO CAKE JAMS LEEK OKRA SAGE BEAN BEET KALE MILK SODA STAR MOON NOVA MARS SUNS RAIN SNOW WIND GALE MIST DAWN
DUSK GLOW WAVE TIDE REEF LAKE POND ISLE COVE HILL PEAK DUNE MESA CAVE ROCK SAND JADE RUBY OPAL GOLD IRON LEAF TREE PINE
FERN MOSS ROSE LILY IRIS OAKS PALM SEED VINE KNOT DRUM HARP LUTE HORN BELL SONG TUNE JAZZ FOLK BEAT KITE BOAT SHIP RAFT
SAIL OARS MAST DECK GEAR BOLT COGS LAMP WICK DOOR GATE ARCH TENT YURT BARN MILL FORT KEEP TOWN BOOK POEM PAGE INKS DICE
CARD KING ROOK PAWN GAME GOAL TEAM RACE LOOP SPIN LEAP HOPS ZOOM DASH ROAM TREK
"""
WORDS = tuple(_WORDS.split())
_CLEAR_LETTERS, _CLEAR_DIGITS = "CDGHJMNPQRTWXY", "3479"
# Abbreviations without vowels that somebody could read something into.
_RUDE = ("CNT", "CMN", "DMN", "DPT", "GTH", "NGR", "PMP", "PRN", "PTN", "TWT", "WTH", "CRP", "DRGY", "XXX")
_TRIES = 64
_MAX_LENGTH = 16


class InviteCodeConfig(BaseModel):
    """`word`: MEOW-42. `length`: characters of the random part, without prefix and dash."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    type: Literal["word", "words", "numeric", "alphabetic", "alphanumeric"] = "word"
    length: Annotated[int, Field(ge=2, le=_MAX_LENGTH)] | None = None
    prefix: Annotated[str, StringConstraints(max_length=16, pattern=r"^[A-Za-z0-9-]*$")] = ""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.type != "word" and self.type != "words" and self.length is not None and self.length < 4:
            raise ValueError(f"length {self.length} gives too few codes for type '{self.type}'; use 4 or more")
        return self


def new_code(config: InviteCodeConfig, taken: Container[str], randbelow: RandBelow) -> str:
    """A code that is not taken. It grows by a character when the short ones run out."""
    for longer in range(_MAX_LENGTH):
        for _ in range(_TRIES):
            code = _code(config, longer, randbelow)
            if code not in taken and not any(rude in code for rude in _RUDE):
                return code
    raise AssertionError("as many codes as that cannot be taken")


def typed(code: str) -> str:
    """A code as it was meant: upper case, without blanks around."""
    return code.strip().upper()


def _code(config: InviteCodeConfig, longer: int, randbelow: RandBelow) -> str:
    prefix = f"{config.prefix.upper().rstrip('-')}-" if config.prefix else ""
    if config.type in ("word", "words"):
        digits = (config.length or 2) + longer
        word = WORDS[randbelow(len(WORDS))]
        return f"{prefix}{word}-{_some('23456789', min(digits, _MAX_LENGTH), randbelow)}"
    letters = {"numeric": "0123456789", "alphabetic": _CLEAR_LETTERS}.get(config.type, _CLEAR_LETTERS + _CLEAR_DIGITS)
    return prefix + _some(letters, (config.length or 6) + longer, randbelow)


def _some(letters: str, length: int, randbelow: RandBelow) -> str:
    return "".join(letters[randbelow(len(letters))] for _ in range(length))
