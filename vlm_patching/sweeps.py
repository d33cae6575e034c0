"""Sections of a spec that say what is swept: one for each method."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vlm_patching.sections import Numbers, Selectors, unique
from vlm_patching.validation import Section


def _widths(value: Any) -> tuple[int, ...]:
    """One width, or a list of them."""
    value = (value,) if type(value) is int else value
    if not isinstance(value, list | tuple) or not value or any(type(width) is not int or width < 1 for width in value):
        shown = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        raise ValueError(f"{shown!r} is not understood; give a whole number of layers from 1, or a list of them.")
    return unique(tuple(value))


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Widths = Annotated[tuple[int, ...], BeforeValidator(_widths)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class _Sweep(Section):
    """Every site × layer × window × head × position, one cell at a time.

    Attributes
    ----------
    sites
        ``stack.component``, `image_embeds`, `token_embeds`; sites joined by "+" are edited together, in one cell.
    layers
        Which layers, counted from 0.
    heads
        Which heads, of sites that have heads.
    positions
        Selectors: a group's name (its positions together are one cell), ``each:`` and a group (one cell a position),
        ``all``, or an index, negative from the end.
    window
        How many layers around each are edited together; a list sweeps several widths.
    """

    sites: tuple[str, ...] = Field(min_length=1)
    layers: Numbers = "all"
    heads: Numbers = "all"
    positions: Selectors = ("last",)
    window: Widths = (1,)

    @field_validator("sites")
    @classmethod
    def _sites_are_written_one_way(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        return unique(tuple("+".join(part.strip() for part in site.split("+")) for site in sites))


class PatchSpec(_Sweep):
    """Cells take the value that they have in the other run.

    Attributes
    ----------
    direction
        `denoise`: clean values into the corrupted run. `noise`: corrupted values into the clean run.
    sever
        A component (`mlp_out`, `attn_out`) that is held, at the patched positions in every layer above, at its value in
        the run that is patched: what the cell does without it.
    placebo
        Also fill every cell with the value it has in another pair's clean run.
    method
        `exact`: every cell is run. `attribution`, `integrated_gradients`: estimated from gradients, all at once.
    steps
        Of integrated gradients; 16 where not given.
    verify
        How many of each pair's strongest estimated cells are run exactly as well.
    """

    direction: Literal["denoise", "noise"] = "denoise"
    sever: str | None = None
    placebo: bool = False
    method: Literal["exact", "attribution", "integrated_gradients"] = "exact"
    steps: int | None = Field(default=None, ge=1)
    verify: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _settings_belong_together(self) -> Self:
        if self.steps is not None and self.method != "integrated_gradients":
            raise ValueError("steps are those of method integrated_gradients.")
        if self.method == "exact" and self.verify:
            raise ValueError("verify is for estimates (method attribution or integrated_gradients).")
        if self.method != "exact" and (self.sever is not None or self.placebo):
            raise ValueError(f"method {self.method} estimates a plain patch; leave sever and placebo out.")
        return self


class KnockoutSpec(Section):
    """Attention from queries to keys is blocked: their scores are -inf before the softmax, the others renormalise.

    Attributes
    ----------
    edges
        "source -> target": position groups of keys and of queries, several joined by "+". A query that is left without
        any key gets no attention output (z = 0).
    sites
        ``stack.attn_pattern`` or ``stack.cross_attn_pattern``; every block that has both groups where not given.
    layers
        Which layers, counted from 0.
    heads
        Which heads are blocked, together.
    window
        How many layers around each are blocked together; a list sweeps several widths.
    """

    edges: Names = Field(min_length=1)
    sites: tuple[str, ...] | None = Field(default=None, min_length=1)
    layers: Numbers = "all"
    heads: Numbers = "all"
    window: Widths = (1,)

    _no_repeated_edges = field_validator("edges")(unique)


class AblateSpec(_Sweep):
    """Cells of the clean run are taken away.

    Attributes
    ----------
    kind
        `zero`; `mean`: over the clean runs of all pairs and all positions of the selector; `resample`: the value in the
        clean run of another pair; `scale`: times `factor`.
    factor
        Of `scale`, and needed there.
    """

    kind: Literal["zero", "mean", "resample", "scale"] = "zero"
    factor: float | None = None

    @model_validator(mode="after")
    def _factor_is_of_scale(self) -> Self:
        if (self.factor is not None) != (self.kind == "scale"):
            raise ValueError(f"factor is for kind scale, and needed there; kind is {self.kind}, factor {self.factor}.")
        return self


class SteerSpec(_Sweep):
    """A vector is added to cells.

    Attributes
    ----------
    vector
        `difference`: mean of the clean minus mean of the corrupted run, over all pairs and all positions of the
        selector. Or a safetensors file with one tensor "vector", or one for each layer, named by its number.
    strengths
        What it is multiplied by; a dimension of the result.
    on
        Which run is steered.
    """

    vector: str = "difference"
    strengths: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    on: Literal["clean", "corrupted"] = "corrupted"

    _no_repeated_strengths = field_validator("strengths")(unique)

    @property
    def needs_corruption(self) -> bool:
        """Whether a corrupted run is compared with, or steered."""
        return self.vector == "difference" or self.on == "corrupted"


class ReceiverSpec(Section):
    """The place that a path ends at: one site, layer and position, and a head where the site has heads.

    Attributes
    ----------
    site
        ``stack.component``.
    layer
        Its number, from 0.
    head
        Its number, from 0, where the site has heads.
    position
        A position group that is one position, or an index.
    """

    site: str
    layer: int = Field(ge=0)
    head: int | None = Field(default=None, ge=0)
    position: str | int = "last"


def _receiver(value: Any) -> Any:
    """`logits` is no place: None."""
    if isinstance(value, str) and value != "logits":
        raise ValueError(f"{value!r} is not understood; give 'logits', or a mapping with site, layer, head, position.")
    return None if value == "logits" else value


class PathSpec(_Sweep):
    """Senders take the value of the other run while everything frozen keeps that of its own; what then reaches the
    receiver is put into it, and nothing else is changed.

    Attributes
    ----------
    receiver
        A place, or `logits` (also where not given): the sender's direct effect.
    freeze
        Sites held in all layers and positions. Where not given, every head but the sender: attention contexts of the
        senders' stacks and of those behind them, and the senders' stacks' own cross-attention contexts (that of later
        stacks is how anything reaches them).
    direction
        `denoise`: the senders take clean values, in the corrupted run. `noise`: corrupted values, in the clean run.
    """

    receiver: Annotated[ReceiverSpec | None, BeforeValidator(_receiver)] = None
    freeze: tuple[str, ...] | None = None
    direction: Literal["denoise", "noise"] = "denoise"


class LensSpec(Section):
    """The residual stream of the clean run, read as if it were the last: through the final norm and the unembedding.

    Attributes
    ----------
    sites
        ``stack.resid_post`` or ``stack.resid_pre`` of a stack that ends in an unembedding; `resid_post` of each such
        stack where not given.
    layers
        Which layers, counted from 0.
    positions
        Selectors of single positions: `last`, ``each:`` and a group, ``all``, or an index.
    """

    sites: tuple[str, ...] | None = Field(default=None, min_length=1)
    layers: Numbers = "all"
    positions: Selectors = ("last",)


class AttentionSpec(Section):
    """The clean run's attention probabilities, read with eager attention.

    Attributes
    ----------
    sites
        ``stack.attn_pattern`` or ``stack.cross_attn_pattern``.
    layers
        Which layers, counted from 0.
    heads
        Which heads.
    positions
        The queries, by selectors. The mean is taken over the positions of a group.
    keys
        Which keys are kept, each apart: a group, several joined by "+", or `all`.
    """

    sites: tuple[str, ...] = Field(min_length=1)
    layers: Numbers = "all"
    heads: Numbers = "all"
    positions: Selectors = ("last",)
    keys: str = "all"

    _no_repeated_sites = field_validator("sites")(unique)


METHOD_SECTIONS = ("patch", "knockout", "ablate", "steer", "path", "lens", "attention")
NEED_CORRUPTION = ("patch", "path")
