# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
#     language: python
# ---

# %% [markdown]
# # Sharing
#
# A figure in a paper does not say how it was made. A *bundle* does: one file with the experiment, the pairs with their
# pictures, and the results. Here one is saved, checked, run again, and changed; and then two are looked at that should
# not be believed.

# %%
import vlm_patching as vp

experiment = vp.Experiment.from_spec("notice2024_llava_heads", {"pairs.n": 12, "patch.positions": ["last"]})
ds = vp.run(experiment, progress=False)
path = vp.bundle.save(experiment, ds, "heads.vlmp.zip")

# %% [markdown]
# ## Whoever gets it
#
# `show` prints what is in it, after it has checked every file against its digest and the parts against each other.
# Nothing of it is run, and nothing unpickled.

# %%
print(vp.bundle.show("heads.vlmp.zip"))

# %% [markdown]
# `replay` runs its graph on its pairs, and compares. The model is not in the bundle: this one comes with the package;
# one of the hub is only fetched with `allow_download=True`.

# %%
print(vp.bundle.replay("heads.vlmp.zip", progress=False))

# %% [markdown]
# On another machine, or another version of torch, differences are small and not 0; then the environment that differs is
# listed as well.
#
# ## Change it
#
# A bundle is a zip of plain files. Its pairs are a dataset `folder`, its spec is a spec, so that every question the
# results leave open can be asked on the same pairs. Here: the first run restored heads; which of them are also
# *necessary*, when the corrupted value goes into the clean run?

# %%
import zipfile

vp.bundle.verify("heads.vlmp.zip")  # before anything is unpacked
with zipfile.ZipFile("heads.vlmp.zip") as bundle:
    bundle.extractall("heads")
changes = {"pairs": {"dataset": "folder", "path": "heads/inputs"}, "patch.direction": "noise", "name": "necessary"}
noised = vp.run(vp.Experiment.from_yaml("heads/experiment.yaml", changes), progress=False)
published = vp.load_results("heads/results.zarr")
drawn = vp.plot.compare(published, noised, metric="logit_difference")

# %%
for name, results in (("restored", published), ("corrupted", noised)):
    effect = vp.effect(results, "logit_difference").mean("example").squeeze()
    at = effect.argmax(...)
    print(f"{name}: L{int(at['layer'])}.H{int(at['head'])} {float(effect.max()):.1f} logits")

# %% [markdown]
# L2.H3, either way, and the two rankings of heads agree. Points with an effect lie above the line: a corrupted value
# in the clean run costs more than the clean value gives back in the corrupted one.
#
# ## Two not to believe
#
# Someone changes a file in the zip, and nothing else:

# %%
with zipfile.ZipFile("heads.vlmp.zip") as bundle, zipfile.ZipFile("changed.vlmp.zip", "w") as changed:
    for name in bundle.namelist():
        content = bundle.read(name)
        changed.writestr(name, content.replace(b"seed: 0", b"seed: 1") if name == "experiment.yaml" else content)
try:
    vp.bundle.verify("changed.vlmp.zip")
except vp.SpecError as error:
    print(error)

# %% [markdown]
# Someone saves numbers that no run has given. Every digest is right, as digests only say that a bundle is whole:

# %%
vp.bundle.save(experiment, ds.assign(logit_difference=ds["logit_difference"] + 0.5), "better.vlmp.zip")
print(vp.bundle.verify("better.vlmp.zip").name)
replay = vp.bundle.replay("better.vlmp.zip", progress=False)
print(replay)

# %% [markdown]
# That is why there is a replay. In a shell `vlm-patching replay better.vlmp.zip` ends with exit code 1.
#
# ## What to cite
#
# The package, nnsight, and the papers that an experiment's `source` names. A report has the same at its end.

# %%
from vlm_patching.citations import citations

print(citations(ds.attrs["source"]))

# %% [markdown]
# - [Sharing results](../sharing.md): what is in a bundle, tolerances, and what is refused.
# - In a shell: `vlm-patching bundle save heads.zarr -o heads.vlmp.zip`, `bundle show`, `bundle verify`, `replay`.
