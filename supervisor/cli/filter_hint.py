"""What to say about a filter of dead letters that fits none: which reasons and handlers there are, and how old."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from supervisor.cli.common import talk
from supervisor.core.dead_letter import Filter, Letter
from supervisor.text import did_you_mean, duration_text, printable

#: How many kinds of reasons and handlers are remembered, and how many are listed.
KINDS_MAX = 100
LISTED_MAX = 10
KIND_CHARACTERS = 60
#: All of it, its words, and the words in those.
_PARTS = (".+", r"\w+", "[A-Z]?[a-z]+|[A-Z]+")


class FilterHint:
    """Looks at the letters that are filtered, and names the options that fit none of them."""

    def __init__(self, wanted: Filter) -> None:
        self._wanted = wanted
        self._text_fits = not wanted.text
        self._oldest_ms: int | None = None
        self._parts = [
            part for part in (_Part("reason", wanted.reason), _Part("handler", wanted.handler)) if part.wanted
        ]

    def look(self, page: Iterable[Letter]) -> None:
        """Note what there is."""
        for letter in page:
            for part in self._parts:
                part.look(getattr(letter, part.name))
            self._text_fits = self._text_fits or self._wanted.text_fits(letter)
            if self._oldest_ms is None or letter.dead_at_ms < self._oldest_ms:
                self._oldest_ms = letter.dead_at_ms

    def tell(self) -> None:
        """Print a line for each option that fits no letter."""
        if self._oldest_ms is None:  # there are no letters
            return
        for part in self._parts:
            if part.kinds and not part.fits:
                talk(f"no dead letter has {part.wanted!r} in its {part.name}{_alternatives(part.wanted, part.kinds)}")
        if not self._text_fits:
            talk(f"no dead letter has {self._wanted.text!r} in a field's name or value, its id or its error")
        age_s, wanted_s = time.time() - self._oldest_ms / 1000, self._wanted.older_than_ms / 1000
        if wanted_s and age_s < wanted_s:
            talk(f"no dead letter is {duration_text(wanted_s)} old; the oldest is {duration_text(max(0.0, age_s))} old")


class _Part:
    """One option, and what the letters have instead."""

    def __init__(self, name: str, wanted: str) -> None:
        self.name, self.wanted = name, wanted
        #: Some letter has it; another option has excluded the letter.
        self.fits = False
        self.kinds: Counter[str] = Counter()

    def look(self, text: str) -> None:
        if self.fits or not text:
            return
        self.fits = self.wanted.lower() in text.lower()
        kind = printable(_kind(text)[:KIND_CHARACTERS].strip())
        if kind in self.kinds or len(self.kinds) < KINDS_MAX:
            self.kinds[kind] += 1


def _kind(reason: str) -> str:
    """Return what many reasons have in common: the error's name, or what comes before a colon."""
    return re.sub(r"^failed .*? with ", "", reason).partition(":")[0]


def _alternatives(wanted: str, kinds: Counter[str]) -> str:
    words = [word for kind in kinds for parts in _PARTS for word in re.findall(parts, kind)]
    return did_you_mean(wanted, words) or f" (there are: {_listed([kind for kind, _ in kinds.most_common()])})"


def _listed(kinds: Sequence[str]) -> str:
    return ", ".join(kinds[:LISTED_MAX]) + (", …" if len(kinds) > LISTED_MAX else "")
