"""Which files of a source are taken: an allow-list. Code and everything else stays where it is."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from serve.settings import SettingsError

_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
_WORDS = (*_NEEDED, "generation_config.json", "chat_template.jinja", "special_tokens_map.json", "LICENSE", "README.md")


class Wanted(NamedTuple):
    """Names in a source's own folder, never in one below it. Either `pickles` is empty, or no safetensors are taken.

    `plain` is served as it is; `pickles` must be converted first, and `pickle_index` says what they hold.
    """

    plain: tuple[str, ...]
    pickles: tuple[str, ...] = ()
    pickle_index: tuple[str, ...] = ()

    @property
    def every(self) -> tuple[str, ...]:
        return self.plain + self.pickle_index + self.pickles


def choose(names: Collection[str], convert_pickle: bool, field: str) -> Wanted:
    """Pick from the names in a source. Safetensors win over pickles. Raises SettingsError that begins with `field`."""
    for needed in _NEEDED:
        if needed not in names:
            raise SettingsError(f"{field}: {needed} is missing")
    words = tuple(n for n in _WORDS if n in names)
    shards, index = _weights(names, "model", "safetensors", field)
    if not shards:
        shards = tuple(sorted(n for n in names if re.fullmatch(r"\w[\w.-]*\.safetensors", n, re.ASCII)))
    if shards:
        return Wanted(words + index + shards)
    pickles, index = _weights(names, "pytorch_model", "bin", field)
    if not pickles:
        raise SettingsError(f"{field}: there is no *.safetensors file")
    if not convert_pickle:
        raise SettingsError(
            f"{field}: there are only pickled weights ({pickles[0]}), which could carry code and are not loaded as "
            "they are; with source.convert_pickle: true they are converted to safetensors, by a process of its own "
            "that reads tensors and refuses everything else"
        )
    return Wanted(words, pickles, index)


def _weights(names: Collection[str], stem: str, ending: str, field: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """One file, or all numbered shards with their index; nothing if the source has neither."""
    if f"{stem}.{ending}" in names:
        return (f"{stem}.{ending}",), ()
    index = f"{stem}.{ending}.index.json"
    shards = sorted(n for n in names if re.fullmatch(rf"{stem}-[0-9]{{5}}-of-[0-9]{{5}}\.{ending}", n))
    if not shards or index not in names:
        return (), ()
    total = int(shards[0].removesuffix(f".{ending}")[-5:])
    for number in range(1, total + 1):
        if (shard := f"{stem}-{number:05d}-of-{total:05d}.{ending}") not in shards:
            raise SettingsError(f"{field}: {shard} is missing")
    return tuple(f"{stem}-{n:05d}-of-{total:05d}.{ending}" for n in range(1, total + 1)), (index,)
