"""Fill-in-the-middle: code before and after the cursor to the prompt that a model was trained on. Pure.

Markers are control tokens and placed by us alone. Editors that render them into a raw prompt are understood when the
whole prompt reads in exactly one way; whatever else a prompt holds, markers in it are text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from serve.errors import BadRequest
from serve.words import Infill, Segment

# StarCoder spells its markers with underscores, SantaCoder with hyphens; the rest is the same for both.
_SPELLINGS = (("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>"),
              ("<fim-prefix>", "<fim-suffix>", "<fim-middle>", "<fim-pad>"))  # fmt: skip
# What stands before a file in StarCoder's training (the first three) and in StarCoder2's.
_REPOSITORY = ("<reponame>", "<filename>", "<gh_stars>", "<repo_name>", "<file_sep>")
_MOST_FILES = 256  # markers of repositories and files before the one with the cursor; beyond that it is text
_STARS = ((0, "0"), (10, "1-10"), (100, "10-100"), (1000, "100-1000"))  # upper bound, name in training


@dataclass(frozen=True, slots=True)
class Markers:
    """The markers of one model, as its vocabulary spells them."""

    prefix: str
    suffix: str
    middle: str
    repository: tuple[str, ...]
    ends: tuple[str, ...]  # a completion that begins another part or another file is over

    def segments(self, infill: Infill) -> tuple[Segment, ...]:
        before = (*by_names(infill.head, self.repository), *self._repository(infill))
        prefix, suffix = Segment(infill.prefix, cut="start"), Segment(infill.suffix, cut="end")
        p, s, m = (Segment(name, control=True) for name in (self.prefix, self.suffix, self.middle))
        order = (p, prefix, s, suffix, m) if infill.order == "psm" else (p, s, suffix, m, prefix)
        return tuple(segment for segment in (*before, *order) if segment.text)

    def taken_apart(self, prompt: str) -> Infill | None:
        """The parts of a raw prompt that an editor rendered; None when it reads in no way, or in several.

        It is in a client's hand how many ways there are: no more are looked at than tell that it is not one.
        """
        readings = {(r.head, r.prefix, r.suffix): r for r in self._readings(prompt)}
        return next(iter(readings.values())) if len(readings) == 1 else None

    def _readings(self, prompt: str) -> Iterator[Infill]:
        """At most two of each order."""
        start = prompt.find(self.prefix)
        if start < 0 or (start > 0 and not prompt.startswith(_REPOSITORY)):
            return
        if sum(prompt.count(name, 0, start) for name in self.repository) > _MOST_FILES:
            return
        head, body = prompt[:start], prompt[start + len(self.prefix) :]
        if body.endswith(self.middle):
            for suffix in _places(body, self.suffix):
                end = len(body) - len(self.middle)
                yield Infill(body[:suffix], body[suffix + len(self.suffix) : end], "psm", head)
        if body.startswith(self.suffix):
            for middle in _places(body, self.middle):
                yield Infill(body[middle + len(self.middle) :], body[len(self.suffix) : middle], "spm", head)

    def _repository(self, infill: Infill) -> Iterator[Segment]:
        """`<reponame>R<filename>F<gh_stars>S` and a line break, as in StarCoder's training."""
        stars = None if infill.stars is None else _bucket(infill.stars)
        told = {"<reponame>": infill.repository, "<filename>": infill.path, "<gh_stars>": stars}
        given = {name: text for name, text in told.items() if text}
        for name, text in given.items():
            if name not in self.repository:
                raise BadRequest(f"fim: this model was not trained with {name}", "fim")
            yield from (Segment(name, control=True), Segment(text))
        if given:
            yield Segment("\n")


def markers_of(control_tokens: Collection[str], eos: str) -> Markers | None:
    """The markers that a vocabulary has; None for a model without fill-in-the-middle."""
    for prefix, suffix, middle, pad in _SPELLINGS:
        if {prefix, suffix, middle} <= set(control_tokens):
            repository = tuple(name for name in _REPOSITORY if name in control_tokens)
            ends = [name for name in (prefix, suffix, middle, pad, eos, *repository) if name in control_tokens]
            return Markers(prefix, suffix, middle, repository, tuple(ends))
    return None


def by_names(text: str, names: Sequence[str]) -> Iterator[Segment]:
    """The text, with control tokens where it holds one of `names`."""
    longest_first, begin = sorted(names, key=len, reverse=True), 0
    # One by one: a split of a long text into many pieces would hold the interpreter for all of them.
    for found in re.finditer("|".join(map(re.escape, longest_first)), text) if names else ():
        yield Segment(text[begin : found.start()])
        yield Segment(found[0], control=True)
        begin = found.end()
    yield Segment(text[begin:])


def shares(prefix: int, suffix: int, room: int) -> tuple[int, int]:
    """How many tokens of each fit into `room`: three quarters and one, and what one leaves goes to the other."""
    kept_suffix = min(suffix, max(room // 4, room - prefix))
    return min(prefix, room - kept_suffix), kept_suffix


def _places(text: str, mark: str) -> list[int]:
    """The first two."""
    return [found.start() for found in islice(re.finditer(re.escape(mark), text), 2)]


def _bucket(stars: int) -> str:
    return next((name for bound, name in _STARS if stars <= bound), "1000+")
