"""The grammar of `ip link set PF vf N ...` and `ip link show [PF]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import click

from virtfn.hw.types import parse_mac

__all__ = ["Setting", "read_settings", "read_shown"]

Setting = dict[str, object]
_M32 = 0xFFFFFFFF


def read_shown(words: Sequence[str]) -> str | None:
    """Read the PF that is to be shown, None for all. Raises click.UsageError."""
    left = list(words[1:] if words and words[0] == "dev" else words)
    if words and not left:
        raise click.UsageError("which PF? dev is followed by a name")
    if len(left) > 1:
        raise click.UsageError(f"{left[1]!r}: one PF at a time, or all without a name")
    return left[0] if left else None


def read_settings(words: Sequence[str]) -> tuple[str, list[Setting]]:
    """Read a PF and what is to be set of its VFs: for each `vf`, and its clauses by the names that requests have.

    Raises click.UsageError for what is no such sentence.
    """
    left = iter(words)
    pf = _next(left, "the name of a PF")
    if pf == "dev":
        pf = _next(left, "the name of a PF")
    settings: list[Setting] = []
    for word in left:
        if word == "vf":
            settings.append({"vf": _number("vf", _next(left, "the number of a VF"))})
        elif not settings:
            raise click.UsageError(f"{word!r}: only VFs can be set, by vf N; a PF of a lab is set by its lab file")
        else:
            _clause(settings[-1], word, left)
    if not settings:
        raise click.UsageError(f"what is to be set of {pf}? Say vf N, and its clauses")
    for setting in settings:
        if len(setting) == 1:
            raise click.UsageError(f"what is to be set of VF {setting['vf']}? Give it a clause, like vlan 10")
    return pf, settings


def _clause(setting: Setting, word: str, left: Iterator[str]) -> None:
    """Read one clause into a setting, whose `vlan` may be followed by qos and proto."""
    if word in ("qos", "proto") and "vlan" not in setting:
        raise click.UsageError(f"{word!r} is of a VLAN: say vlan N {word} ...")
    if word not in _CLAUSES:
        raise click.UsageError(f"{word!r} is no clause; there are {', '.join(_CLAUSES)}")
    name, read = _CLAUSES[word]
    if name in setting:
        raise click.UsageError(f"{word!r} is there twice")
    setting[name] = read(word, _next(left, f"what follows {word}"))


def _next(left: Iterator[str], what: str) -> str:
    word = next(left, None)
    if word is None:
        raise click.UsageError(f"the command is not complete: {what} is missing")
    return word


def _number(word: str, text: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number <= _M32 or "_" in text:
        raise click.UsageError(f"{word} {text}: is no number")
    return number


def _switch(word: str, text: str) -> bool:
    return _one_of("on", "off")(word, text) == "on"


def _one_of(*words: str) -> Callable[[str, str], str]:
    def read(word: str, text: str) -> str:
        for each in words:
            if text.lower() == each.lower():
                return each
        raise click.UsageError(f"{word} {text}: must be one of {', '.join(words)}")

    return read


def _mac(word: str, text: str) -> str:
    try:
        parse_mac(text)
    except ValueError as error:
        raise click.UsageError(f"{word}: {error}") from None
    return text


_CLAUSES: dict[str, tuple[str, Callable[[str, str], object]]] = {
    "mac": ("mac", _mac),
    "vlan": ("vlan", _number),
    "qos": ("qos", _number),
    "proto": ("proto", _one_of("802.1Q", "802.1ad")),
    "rate": ("max_tx_rate", _number),
    "max_tx_rate": ("max_tx_rate", _number),
    "min_tx_rate": ("min_tx_rate", _number),
    "spoofchk": ("spoofchk", _switch),
    "trust": ("trust", _switch),
    "query_rss": ("query_rss", _switch),
    "state": ("state", _one_of("auto", "enable", "disable")),
}
