"""Reads a page as a user would: types what its blocks say, in order, in a folder of its own."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import yaml
from PIL import Image

import vlm_patching as vp
from docs.tools.blocks import Block
from docs.tools.pages import ROOT
from vlm_patching import cli
from vlm_patching.models.families import read_family
from vlm_patching.sweeps import METHOD_SECTIONS, NEED_CORRUPTION
from vlm_patching.validation import parse_json, parse_yaml

MOST_PAIRS = 8
"""Of a sweep on a page: what a block says is run as it stands, on fewer pairs."""
_LISTED = re.compile(r" *[\w./*{},-]+(?: [\w./*{},-]+)*(?:  +.*)?|")
"""A file or folder, and what it is."""
ROW = "A row of "
"""Begins the title of a row that is added to one of the package's tables."""
INSTANCE = "For instance"
"""Title of an output whose numbers are those of one machine, or of more pairs."""
BASE = {"pairs": {"dataset": "shapes", "n": 2, "questions": ["color"], "constraints": 1}}
"""What a part of a spec is completed by."""


class Reader:
    """One page's folder and names.

    Attributes
    ----------
    printed
        What the block that was run last has printed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, Any] = {}
        self.printed: str | None = None

    def read(self, block: Block) -> None:
        """Do what a block says."""
        if not block.language:
            for line in block.text.splitlines():
                assert _LISTED.fullmatch(line), f"{block}: only a list of files has no language; {line!r} is no file"
            return
        if block.language == "text":
            assert self.printed is not None, f"{block}: this shows an output, and no block before it prints one"
            assert_shows(block, self.printed)
            return
        readers = {"python": self._python, "sh": self._shell, "yaml": self._yaml, "json": self._json}
        assert block.language in readers, f"{block}: nothing knows how to check a block of {block.language!r}"
        self.printed = None
        readers[block.language](block)

    def _python(self, block: Block) -> None:
        if block.title.startswith(ROW):
            ast.parse("{" + block.text + "}", str(block))
            return
        with _heard() as heard:
            exec(compile(block.text, str(block), "exec"), self.names)
        plt.close("all")
        self.printed = heard.getvalue()

    def _shell(self, block: Block) -> None:
        said = ""
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["vlm-patching"]:
                said += _command(words, block)
            elif words[:1] == ["make"]:
                targets = re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
                assert words[1] in targets, f"{block}: make has no target {words[1]}"
            else:
                assert not words, f"{block}: {line!r} is not run; say in its title what it needs"
        self.printed = said

    def _yaml(self, block: Block) -> None:
        data = parse_yaml(block.text, str(block))
        assert isinstance(data, dict), f"{block}: no mapping"
        if block.title:
            (self.folder / block.title).write_text(block.text, encoding="utf-8")
        if "model_class" in data:
            (self.folder / "family.yaml").write_text(block.text, encoding="utf-8")
            read_family("family.yaml")
        elif "name" in data:
            vp.plan(vp.Experiment.from_dict(data, str(block)))
        else:
            for experiment in _completed(data, block):
                if experiment.pairs.dataset == "shapes":  # others have files
                    vp.plan(experiment)

    def _json(self, block: Block) -> None:
        data = parse_json(block.text, str(block))
        if not isinstance(data, dict) or "clean" not in data:
            return
        path = self.folder / (block.title or "pairs.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data) + "\n", encoding="utf-8")
        for i, side in enumerate(("clean", "corrupted")):
            picture = Image.new("RGB", (320, 240), ("gray", "white")[i])
            picture.save(path.parent / data[side]["image"])
        assert len(vp.load_pairs("folder", path=str(path.parent))) == 1


def _completed(data: Mapping[str, Any], block: Block) -> Iterator[vp.Experiment]:
    """An experiment for each method of a part of a spec, on the bundled model that has its sites."""
    methods = [name for name in METHOD_SECTIONS if name in data]
    if not methods:
        data = {**data, "patch": {"sites": ["language.resid_post"], "positions": ["last"]}}
    for method in methods or ["patch"]:
        rest = {key: value for key, value in data.items() if key not in METHOD_SECTIONS}
        if method in NEED_CORRUPTION or method == "steer":
            rest = {"corruption": {"kind": "semantic_image_pair"}} | rest
        model = "shapes-blip" if re.search("question_encoder|answer_decoder", str(data[method])) else "shapes-llava"
        spec = {"name": "part", "model": {"name": model}, **BASE, **rest, method: data[method]}
        if "option" in str(data[method]):
            spec["pairs"] = {"dataset": "shapes", "n": 2}
        yield vp.Experiment.from_dict(spec, str(block))


def _command(words: list[str], block: Block) -> str:
    with pytest.MonkeyPatch.context() as patch, _heard() as heard:
        patch.setattr(sys, "argv", words)
        code: Any = 0
        try:
            cli.main()
        except SystemExit as done:
            code = done.code or 0
    assert code == 0, f"{block}: {shlex.join(words)} exits with {code}:\n{heard.getvalue()}"
    return heard.getvalue()


@contextlib.contextmanager
def _heard() -> Iterator[io.StringIO]:
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        yield heard


def assert_shows(block: Block, printed: str) -> None:
    """What a page shows is what was printed: line by line, where `...` stands for anything.

    Under the title "For instance" numbers, and the spaces before them, may be others.
    """
    pattern = r"\n".join(r"(?s:.*?)" if line.strip() == "..." else _line(line) for line in block.text.splitlines())
    if block.title == INSTANCE:
        pattern = re.sub(r"(\\ )*\d[\d,]*(\\\.\d+)?", r" *[\\d.,]+", pattern)
    assert re.fullmatch(pattern, printed.rstrip()) or _among(pattern, printed), (
        f"{block} shows\n{block.text}\nand what is printed is\n{printed}"
    )


def _line(line: str) -> str:
    return r"[^\n]*?".join(map(re.escape, re.split(r"(?:^|(?<=\s))\.\.\.(?=\s|$)", line.rstrip()))) + r"[ \t]*"


def _among(pattern: str, printed: str) -> bool:
    """Whether what is shown are some whole lines of what was printed."""
    return re.search(rf"(?:^|\n){pattern}(?:\n|$)", printed) is not None


@contextlib.contextmanager
def few_pairs() -> Iterator[None]:
    """Experiments take no more pairs than `MOST_PAIRS` of those that are drawn."""
    made = vp.Experiment.from_dict.__func__  # type: ignore[attr-defined]

    def fewer(cls: type[vp.Experiment], data: Any, where: str = "experiment") -> vp.Experiment:
        pairs = data.get("pairs") if isinstance(data, Mapping) else None
        if isinstance(pairs, Mapping) and pairs.get("dataset") == "shapes":
            count = pairs.get("n")
            data = {**data, "pairs": {**pairs, "n": min(64 if count is None else count, MOST_PAIRS)}}
        return made(cls, data, where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vp.Experiment, "from_dict", classmethod(fewer))
        yield


def is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def is_yaml(text: str) -> bool:
    try:
        yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    return True
