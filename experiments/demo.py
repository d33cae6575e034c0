"""`make demo`: presets on both bundled models, from pixels to figures, in one go.

Leaves zarr stores, figures and a summary under results/demo, and says where they are.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import vlm_patching as vp

OUT = Path("results/demo")
PRESETS = (
    "answer_path_blip",
    "answer_path_llava",
    "palit2023",
    "notice2024_blip_modules",
    "notice2024_blip_heads",
    "notice2024_llava_modules",
    "notice2024_llava_heads",
)
METRIC = "logit_difference"
NORMALIZED = ("patch", "path")
"""Methods whose effects have a total effect to be compared with."""


def main() -> None:
    results, figures, seconds = run_all(PRESETS, OUT)
    figures.append(overview(results))
    report(results, figures, seconds, OUT)


def run_all(presets: Iterable[str], out: Path) -> tuple[dict[str, xr.Dataset], list[Path], float]:
    """Run presets, each model loaded once, and draw them; datasets, figures, seconds."""
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    models = {name: vp.load_model(name) for name in vp.bundled_models()}
    results, figures = {}, []
    for preset in presets:
        experiment = vp.Experiment.from_spec(preset)
        results[preset] = vp.run(experiment, model=models[experiment.model.name], store=out / f"{preset}.zarr")
        figures += draw(preset, results[preset], out)
    return results, figures, time.monotonic() - start


def report(results: dict[str, xr.Dataset], figures: list[Path], seconds: float, out: Path) -> None:
    """Write the summary, and say what is where."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    summary = out / "summary.md"
    summary.write_text(summarize(results, seconds, memory))
    print(summary.read_text())
    print(f"stores   {out}/*.zarr")
    print("figures  " + "\n         ".join(map(str, figures)))
    print(f"summary  {summary}")


def draw(preset: str, ds: xr.Dataset, out: Path) -> list[Path]:
    """The figures that a preset names."""
    paths = []
    for name, figure in vp.plot.draw(ds, pairs=vp.rebuild_pairs(ds)).items():
        paths.append(vp.plot.save(figure, out / f"{preset}_{name}.png", dpi=130))
        plt.close(figure)
    return paths


def overview(results: dict[str, xr.Dataset]) -> Path:
    """One picture of it all: a pair, and where the answer is on its way through both models."""
    pair = vp.load_pairs("shapes", n=1, seed=0, questions=["color_choice"])[0]
    figure = plt.figure(figsize=(13, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=[1.05, 1.5, 1.9])
    for row, (prompt, name, answer) in enumerate(
        [(pair.clean, "clean", pair.answer), (pair.corrupted, "corrupted", pair.foil)]
    ):
        _picture(figure.add_subplot(grid[row, 0]), prompt.picture(), pair, f"{name}: {answer!r}")
    for row, (preset, sites) in enumerate(
        [
            ("answer_path_blip", ("question_encoder.resid_post", "answer_decoder.resid_post")),
            ("answer_path_llava", ("language.resid_post",)),
        ]
    ):
        ds = results[preset]
        _lines(figure.add_subplot(grid[row, 1]), ds, sites)
    for row, (preset, site) in enumerate(
        [
            ("notice2024_blip_modules", "question_encoder.mlp_block_out"),
            ("notice2024_llava_modules", "language.resid_post"),
        ]
    ):
        ax = figure.add_subplot(grid[row, 2])
        vp.plot.heatmap(results[preset], METRIC, site=site, normalize=True, limit=1, ax=ax)
        ax.collections[0].colorbar.set_label("share of the total effect", fontsize=10)
        ax.set_title(f"{results[preset].attrs['model']}, {site}", fontsize=10)
    figure.suptitle(
        f"What restoring one place of the clean run gives back of the answer.  E.g. “{pair.clean.text}”", fontsize=12
    )
    path = OUT / "overview.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _picture(ax: Axes, image: object, pair: vp.Pair, title: str) -> None:
    ax.imshow(np.asarray(image))
    x0, y0, x1, y1 = pair.regions["object"]
    ax.add_patch(Rectangle((x0 - 1.5, y0 - 1.5), x1 - x0 + 2, y1 - y0 + 2, fill=False, lw=1.5, ls="--", clip_on=False))
    ax.set_title(title, fontsize=10)
    ax.set_axis_off()


def _lines(ax: Axes, ds: xr.Dataset, sites: tuple[str, ...]) -> None:
    effect = vp.effect(ds, METRIC, normalize=True)
    for site in sites:
        for position in map(str, ds["position"].values):
            values = effect.sel(site=site, position=position)
            if bool(values.isnull().all()) or position in ("foil_option", "question"):
                continue
            mean = values.mean("example")
            spread = 1.96 * values.std("example") / np.sqrt(values.notnull().sum("example"))
            (line,) = ax.plot(ds["layer"], mean, marker="o", ms=3, label=f"{site.split('.')[0]} @ {position}")
            ax.fill_between(ds["layer"].values, mean - spread, mean + spread, alpha=0.2, color=line.get_color(), lw=0)
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set_title(f"{ds.attrs['model']}, resid_post", fontsize=10)
    ax.set_xlabel("layer")
    ax.set_ylabel("share of the total effect")
    ax.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2)


def summarize(results: dict[str, xr.Dataset], seconds: float, memory: float) -> str:
    """The strongest cells of every preset, in Markdown."""
    lines = [
        "# What was run",
        "",
        "| preset | pairs kept | cells a pair | strongest cells | of what |",
        "|---|---|---|---|---|",
    ]
    for preset, ds in results.items():
        mean, unit = headline(ds)
        cells = mean.stack(cell=mean.dims).dropna("cell")
        top = cells.sortby(-abs(cells))[:4]
        shown = "; ".join(f"{_cell(ds, item)} {float(item):.2f}" for item in top)
        kept = f"{ds.attrs['examples_kept']} of {ds.attrs['examples']}"
        if ds.attrs["examples_unaffected"]:
            kept += f", {ds.attrs['examples_unaffected']} with an unchanged answer"
        lines.append(f"| {preset} | {kept} | {cells.size} | {shown} | {unit} |")
    lines += ["", f"{seconds:.0f} seconds, at most {memory:.2f} GiB of memory."]
    return "\n".join(lines) + "\n"


def headline(ds: xr.Dataset) -> tuple[xr.DataArray, str]:
    """The mean map that a method is about, and its unit."""
    kept = ds["kept"] == "kept"
    if ds.attrs["method"] == "attention":
        found = vp.analysis.head_functions(ds)["pointing_ratio"].where(kept)
        return found.mean("example"), "pointing ratio at the object"
    if ds.attrs["method"] == "knockout":
        return vp.analysis.knockout_change(ds).mean("example"), "% change of p(answer)"
    if ds.attrs["method"] == "lens":
        return ds["probability"].where(kept).mean("example"), "p(answer) through the lens"
    if ds.attrs["method"] in NORMALIZED:
        return vp.plot.mean_effect(ds, METRIC, normalize=True), "share of the total effect on the logit difference"
    return vp.plot.mean_effect(ds, METRIC, normalize=False), "effect on the logit difference"


def _cell(ds: xr.Dataset, item: xr.DataArray) -> str:
    parts = [
        f"{item['site'].values} L{int(item['layer'])}" + (f"H{int(item['head'])}" if "head" in item.coords else "")
    ]
    if "position" in item.coords:
        position = str(item["position"].values)
        if position.isdigit():
            position = vp.plot.position_labels(ds)[ds["position"].values.tolist().index(position)]
        parts.append(f"@ {position}")
    if "edges" in item.coords:
        parts.append(str(item["edges"].values))
    parts += [f"{name} {item[name].item():g}" for name in ("window", "strength") if name in item.coords]
    return " ".join(parts)


if __name__ == "__main__":
    main()
