"""Random edits of data, texts and bytes, and a watch over what is done with them."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import signal
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import vlm_patching as vp

SECONDS = 5.0
"""What one mutant may take of the processor; and `PATIENCE`, of the day, on a machine that others use too."""
PATIENCE = 60.0
MEMORY = 2**30
"""What all mutants of a test may add to the process."""
_ODD_TEXTS = (
    "",
    " ",
    "\0",
    "\ud800",
    "\u202e",
    "\u200b",
    "\x1b[2J",
    "é" * 3,
    "٣",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "file:/etc/passwd",
    "C:\\x",
    "all",
    "each:",
    "each:text",
    "0:999999999999",
    "last",
    "layer",
    "head",
    "position",
    "edges",
    "window",
    "strength",
    "a -> b",
    "->",
    "+",
    "language.attn_head",
    "language.resid_post+language.mlp_out",
    "clean.z",
    "clean.z - corrupted.z",
    "x" * 20_000,
    "__class__",
    "{0.__class__}",
    "%s%n",
    "NaN",
    "1e5",
    "null",
)
_ODD_NUMBERS = (
    0,
    -1,
    1,
    2,
    7,
    10**6,
    2**31,
    2**63,
    -(2**64),
    10**40,
    0.5,
    -0.0,
    1e308,
    5e-324,
    1e999,
    -1e999,
    float("nan"),
)
_ODD_NAMES = ("trust_remote_code", "__proto__", "version", "kind", "site", "x", "", "é", "seed")


def nested(depth: int, mapping: bool) -> Any:
    """A value inside many others."""
    value: Any = 0
    for _ in range(depth):
        value = {"a": value} if mapping else [value]
    return value


def odd(rng: random.Random) -> Any:
    """A value that is hardly ever right."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(_ODD_TEXTS)
    if kind < 6:
        return rng.choice(_ODD_NUMBERS)
    others: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": 0}, {"a": {"b": []}}, [0, "a", None])
    large = (nested(rng.choice((5, 60, 300)), rng.random() < 0.5), list(range(2000)), {str(i): i for i in range(500)})
    return rng.choice(others) if kind == 6 or rng.random() < 0.5 else rng.choice(large)


def edited(data: Any, rng: random.Random) -> Any:
    """A copy of JSON data with one to three edits."""
    whole = {"": copy.deepcopy(data)}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if whole:
            _edit(whole, rng)
    return whole.get("")


def _edit(whole: dict[str, Any], rng: random.Random) -> None:
    places = list(_places(whole))
    inside, key = rng.choice(places)
    value = inside[key]
    kind = rng.randrange(8)
    if kind == 0:
        del inside[key]
    elif kind == 1:
        inside[key] = odd(rng)
    elif kind == 2:
        other, place = rng.choice(places)
        inside[key] = copy.deepcopy(other[place])
    elif kind == 3 and isinstance(value, dict):
        value[rng.choice(_ODD_NAMES)] = odd(rng)
    elif kind == 4 and isinstance(inside, dict):
        inside[rng.choice([*_ODD_NAMES, key + "s", key.upper()])] = inside.pop(key)
    elif kind == 5 and isinstance(value, list):
        value.insert(rng.randint(0, len(value)), copy.deepcopy(rng.choice(value)) if value else odd(rng))
    elif isinstance(value, str):
        inside[key] = flipped(value, rng)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        inside[key] = rng.choice((value + 1, value - 1, -value, value * 1000, value + 0.5, str(value), [value]))
    else:
        inside[key] = odd(rng)


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(data) if isinstance(data, dict) else range(len(data)):
        yield data, key
        if isinstance(data[key], dict | list):
            yield from _places(data[key])


def flipped(text: str, rng: random.Random) -> str:
    """A text with some characters exchanged, added, or taken out."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randint(0, len(text))
        added = rng.choice(
            (rng.choice(string.printable), rng.choice(_ODD_TEXTS[:20]), text[at : at + rng.randint(0, 40)])
        )
        text = text[:at] + added + text[at + rng.choice((0, 0, 1, 1, 3, 30)) :]
    return text


def broken(content: bytes, rng: random.Random) -> bytes:
    """Bytes with some of them exchanged, added, or taken out."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(6)
        if kind < 3 and at < len(changed):
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, changed[at] ^ (1 << rng.randrange(8))))
        elif kind == 3:
            changed[at : at + rng.choice((1, 2, 4, 64))] = b""
        elif kind == 4:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
        else:
            changed[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80"))
    return bytes(changed)


class Watch:
    """What mutants may not do: write outside one folder, start programs, connect, unpickle, take long, take memory."""

    _active: Watch | None = None
    _hooked = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refused = self.accepted = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[Watch]:
        """Watches until the block ends, and limits memory."""
        if not Watch._hooked:
            sys.addaudithook(_on_event)
            Watch._hooked = True
        before, pages = resource.getrlimit(resource.RLIMIT_AS), Path("/proc/self/statm")
        if pages.exists():
            present = int(pages.read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (present + MEMORY, before[1]))
        for number in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(number, _too_slow)
        Watch._active = self
        try:
            yield self
        finally:
            Watch._active = None
            for number in (signal.SIGALRM, signal.SIGPROF):
                signal.signal(number, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_AS, before)
        assert not list(self.folder.iterdir()), f"left behind: {list(self.folder.iterdir())}"

    def put(self, mutant: Any, attempt: Callable[[Any], object]) -> None:
        """Try a mutant: it works, or is refused by an error of the project's own."""
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            attempt(mutant)
            self.accepted += 1
        except (vp.SpecError, vp.RunError) as error:
            assert str(error).strip() and len(str(error)) < 100_000
            self.refused += 1
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__} {error} for the mutant {str(mutant)[-3000:]!r}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)


class _Slow(BaseException):
    """A mutant took too long."""


class _Forbidden(BaseException):
    """A mutant did what none may."""


def _too_slow(number: int, frame: object) -> None:
    raise _Slow(f"more than {SECONDS} s of the processor, or {PATIENCE} s")


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    watch = Watch._active
    if watch is None:
        return
    if event in (
        "pickle.find_class",
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "socket.connect",
        "os.symlink",
        "os.link",
    ):
        raise _Forbidden(f"{event} {arguments}")
    writes = event in ("os.mkdir", "os.rename", "os.truncate") or (
        event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    )
    if writes and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith(f"{watch.folder.resolve()}{os.sep}") and path != "/dev/null":
            raise _Forbidden(f"{event} {path}")


def as_json(data: Any) -> str:
    """JSON text, NaN and infinity included."""
    return json.dumps(data, allow_nan=True)
