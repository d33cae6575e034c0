"""The zip: written always alike, and read as what it is, a stranger's.

A bundle has a fixed layout. What is not in `LAYOUT` is refused, so a name never reaches the file system that is not one
of ours; sizes are bounded before anything is read, and again while it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vlm_patching.bundle.records import VERSION, FileRecord, Manifest
from vlm_patching.errors import SpecError

MANIFEST, INPUTS = "manifest.json", "inputs"
MAX_FILES = 20_000
MAX_FILE = 2**30
MAX_TOTAL = 2**31
MAX_TEXT = 2**24
"""Bytes of one of the bundle's own JSON or YAML files (the pairs may have more)."""
MAX_RATIO = 100
"""How many times smaller than itself a file larger than `SMALL` may be in the zip; beyond, it is stored as it is."""
SMALL = 2**20
_MAX_DIRECTORY = 2**22
_BLOCK = 2**20
_LAYOUT = {
    r"(manifest|graph|environment)\.json": MAX_TEXT,
    r"(experiment|family)\.yaml": 2**18,
    r"inputs/pairs\.jsonl": 2**26,
    r"inputs/[0-9a-f]{64}\.png": 2**28,
    r"inputs/vectors\.safetensors": 2**28,
    r"results\.zarr/([a-z][a-z0-9_]*/)?zarr\.json": MAX_TEXT,
    r"results\.zarr/[a-z][a-z0-9_]*/c(/0)*": MAX_FILE,
    r"figures/[A-Za-z0-9_-]{1,80}\.png": 2**26,
}
"""Name of a file, as a pattern → how many bytes it may have."""


def pack(folder: Path, path: Path, name: str, created_at: str) -> None:
    """Write a folder as a bundle, in order, with fixed times: the same files give the same bytes."""
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    records = {inside: FileRecord(sha256=_digest(file), size=file.stat().st_size) for inside, file in files.items()}
    data = {"version": VERSION, "name": name, "created_at": created_at, "files": records}
    manifest = Manifest.from_data(data, MANIFEST).to_json()
    with zipfile.ZipFile(path, "w") as bundle:
        _add(bundle, MANIFEST, manifest.encode())
        for inside, file in files.items():
            _add(bundle, inside, file.read_bytes())


def _add(bundle: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    plain = len(content) > SMALL and 2 * len(content) > MAX_RATIO * len(zlib.compress(content))
    bundle.writestr(entry, content, zipfile.ZIP_STORED if plain else zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Unpacked:
    """A bundle's files, every digest checked.

    Attributes
    ----------
    digest
        SHA-256 of the manifest, which has that of every file.
    folder
        Temporary; has what is below `INPUTS`.
    files
        Name → bytes, of all others.
    """

    manifest: Manifest
    digest: str
    folder: Path
    files: dict[str, bytes]

    def text(self, name: str) -> str:
        """A file's text; `SpecError` where it is not UTF-8."""
        return decoded(self.files[name], name)


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Unpacked]:
    """A bundle's files; the temporary folder is gone when the block ends.

    Raises
    ------
    SpecError
        Whatever is not as `pack` would have written it, but for the order, the times and the compression of files.
    """
    with tempfile.TemporaryDirectory(prefix="vlmp-") as made:
        try:
            with path.open("rb") as file:
                _check_end(file)
                with zipfile.ZipFile(file) as bundle:
                    whole = _unpack(bundle, Path(made))
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, UnicodeError) as error:
            raise SpecError(f"it is not a zip that can be read: {error}") from error
        yield whole


def decoded(content: bytes, name: str) -> str:
    """A file's text; `SpecError` where it is not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SpecError(f"{name} is not UTF-8 text (byte {error.start}).") from error


def _unpack(bundle: zipfile.ZipFile, folder: Path) -> Unpacked:
    entries = _checked(bundle)
    text = b"".join(_blocks(bundle, entries.pop(MANIFEST)))
    manifest = Manifest.from_json(decoded(text, MANIFEST))
    _check_names(entries, manifest)
    (folder / INPUTS).mkdir()
    files = {}
    for name, entry in entries.items():
        record, digest, count = manifest.files[name], hashlib.sha256(), 0
        with (folder / name).open("xb") if name.startswith(f"{INPUTS}/") else io.BytesIO() as sink:
            for block in _blocks(bundle, entry):
                digest.update(block)
                count += sink.write(block)
            if (count, digest.hexdigest()) != (record.size, record.sha256):
                raise SpecError(f"{name} is not what {MANIFEST} says: its sha256 or its size is another.")
            if isinstance(sink, io.BytesIO):
                files[name] = sink.getvalue()
    return Unpacked(manifest, hashlib.sha256(text).hexdigest(), folder, files)


def _check_end(file: IO[bytes]) -> None:
    """The zip ends with its directory, which is of a size that can be read; no comment, no zip64."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 42))
    tail = file.read()
    end, before = tail[-22:], tail[:-22]
    if end[:4] != b"PK\5\6":
        raise SpecError("it is not a zip, or something follows the zip's end.")
    disk, first, here, count, directory, offset, comment = struct.unpack("<4xHHHHIIH", end)
    if (disk, first, here, comment) != (0, 0, count, 0) or before.startswith(b"PK\6\7") or offset + directory > size:
        raise SpecError("its directory has a comment, several disks, or is a zip64's; a bundle's has none of them.")
    if count > MAX_FILES or directory > _MAX_DIRECTORY:
        raise SpecError(f"it holds {count} files in a directory of {directory} bytes; at most {MAX_FILES} are read.")


def _checked(bundle: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Name → entry, where every entry is one that a bundle may have."""
    entries: dict[str, zipfile.ZipInfo] = {}
    known: set[str] = set()
    if len(bundle.infolist()) > MAX_FILES:
        raise SpecError(f"it holds {len(bundle.infolist())} files; at most {MAX_FILES} are read.")
    for entry in bundle.infolist():
        name = entry.orig_filename
        _check_name(name)
        if name.casefold() in known:
            raise SpecError(f"it holds {name!r} twice (names that differ only in case count as one).")
        known.add(name.casefold())
        _check_entry(entry, name)
        entries[name] = entry
    if MANIFEST not in entries:
        raise SpecError(f"it holds no {MANIFEST}.")
    total = sum(entry.file_size for entry in entries.values())
    if total > MAX_TOTAL:
        raise SpecError(f"its files have {total} bytes together; at most {MAX_TOTAL} are read.")
    _check_no_overlap(bundle, list(entries.values()))
    return entries


def _check_name(name: str) -> None:
    if "\0" in name or "\\" in name or name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        raise SpecError(f"it holds {name!r}, a path that could lead out of the folder it is unpacked in.")
    if not any(re.fullmatch(pattern, name) for pattern in _LAYOUT):
        raise SpecError(f"it holds {name!r}, which is no file of a bundle.")


def _check_entry(entry: zipfile.ZipInfo, name: str) -> None:
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or entry.external_attr & 0x10:
        raise SpecError(f"{name} is not a plain file (mode {mode:o}): links, folders and devices are not unpacked.")
    if entry.flag_bits & 0x2061:  # encrypted, patched, strongly encrypted, with a masked header
        raise SpecError(f"{name} is encrypted or patched (flags {entry.flag_bits:#x}).")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SpecError(f"{name} is compressed by method {entry.compress_type}; stored (0) and deflated (8) are read.")
    most = next(most for pattern, most in _LAYOUT.items() if re.fullmatch(pattern, name))
    if not 0 <= entry.file_size <= most:
        raise SpecError(f"{name} says that it has {entry.file_size} bytes; at most {most} are read.")
    if entry.file_size > SMALL and entry.file_size > MAX_RATIO * entry.compress_size:
        raise SpecError(
            f"{name} is {entry.file_size / max(1, entry.compress_size):.0f} times smaller in the zip than unpacked; at "
            f"most {MAX_RATIO} times is read."
        )


def _check_no_overlap(bundle: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> None:
    """No two entries are made of the same bytes, as in a zip bomb."""
    entries.sort(key=lambda entry: entry.header_offset)
    starts = [entry.header_offset for entry in entries] + [bundle.start_dir]
    for entry, start, following in zip(entries, starts[:-1], starts[1:], strict=True):
        if start < 0 or start + 30 + len(entry.orig_filename) + entry.compress_size > following:
            raise SpecError(f"{entry.orig_filename} overlaps with what follows it in the zip.")


def _check_names(entries: dict[str, zipfile.ZipInfo], manifest: Manifest) -> None:
    for what, names in (
        ("does not list", entries.keys() - manifest.files.keys()),
        ("lists, and the zip lacks,", manifest.files.keys() - entries.keys()),
    ):
        if names:
            raise SpecError(f"{MANIFEST} {what} {', '.join(map(repr, sorted(names)[:5]))}.")
    for name, entry in entries.items():
        if entry.file_size != manifest.files[name].size:
            raise SpecError(f"{name} has {entry.file_size} bytes, and {MANIFEST} says {manifest.files[name].size}.")


def _blocks(bundle: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """A file's bytes, unpacked a block at a time, and never more of them than the directory says."""
    with bundle.open(entry) as source:
        while block := source.read(_BLOCK):
            yield block


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
