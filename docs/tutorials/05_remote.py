# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
#     language: python
# ---

# %% [markdown]
# # On a server
#
# A model that is too big for your machine runs on an [NDIF](https://ndif.us) server. The spec stays the same, and so
# does the dataset. This notebook runs without a server: what its cells show is what your machine does by itself, and
# what needs a server is written as text and marked so.

# %%
import vlm_patching as vp

experiment = vp.Experiment.from_dict(
    {
        "name": "remote",
        "model": {"name": "shapes-llava"},
        "pairs": {"dataset": "shapes", "n": 8, "seed": 0},
        "corruption": {"kind": "semantic_image_pair"},
        "patch": {"sites": ["language.resid_post"], "positions": ["image:object", "last"]},
        "metrics": ["logit_difference"],
    }
)

# %% [markdown]
# ## What your machine needs
#
# The model's configuration and its processor, and no weights. From these alone come the graph and the plan:

# %%
graph = experiment.graph()
print(graph)
print(vp.plan(experiment))

# %% [markdown]
# The graph is plain data. The programs that go to the server are made of it, and back come numbers: one for every cell,
# pair and metric.

# %%
text = graph.to_json()
assert vp.InterventionGraph.from_json(text) == graph
print(f"{len(text):,} characters of JSON, hash {graph.id}")

# %% [markdown]
# ## Is there a server?
#
# `vlm-patching doctor --backend ndif` says which models a server has and whether versions match. Where nothing answers,
# it says that, and ends with exit code 1:

# %%
import subprocess
import sys

NOBODY = "http://127.0.0.1:9"
command = [sys.executable, "-m", "vlm_patching", "doctor", "--backend", "ndif", "--host", NOBODY]
done = subprocess.run(command, capture_output=True, text=True)
print(done.stderr.strip(), "\nexit code", done.returncode)

# %% [markdown]
# A run says the same, after as many seconds as it was told to be patient:

# %%
try:
    vp.run(experiment, backend="ndif", remote=vp.Remote(host=NOBODY, patience=2), store="remote.zarr", progress=False)
except vp.RunError as error:
    print(error)

# %% [markdown]
# ## With a server
#
# One on your own machine, with a bundled model, to try it without an account; it prints its address:
#
# ```sh title="Needs an NDIF server"
# vlm-patching serve-ndif shapes-llava
# ```
#
# or the public one, with a key, and a model of its own:
#
# ```sh title="Needs an NDIF server"
# export NDIF_API_KEY=...          # never written to a store, a log or a bundle
# vlm-patching doctor --backend ndif
# vlm-patching run notice2024_llava_heads --set model.name=llava-hf/llava-1.5-7b-hf --backend ndif -o heads.zarr
# ```
#
# or from Python:
#
# ```python title="Needs an NDIF server"
# ds = vp.run(experiment, backend="ndif", host="http://127.0.0.1:PORT", store="remote.zarr")
# ```
#
# Examples go there in jobs, a few at a time, and each job's name is in the store before anything waits for it. Close
# the laptop; the same command finds its jobs again and fetches what they gave:
#
# ```sh title="Needs an NDIF server"
# vlm-patching jobs heads.zarr         # what the store waits for
# vlm-patching run notice2024_llava_heads --set model.name=llava-hf/llava-1.5-7b-hf --backend ndif -o heads.zarr
# ```
#
# ## The same dataset
#
# In float32 on one CPU thread, a server's numbers are those of a local run, bit for bit, and the trust checks are run
# there as here. So a small run at home tells what a large one will look like:

# %%
ds = vp.run(experiment, store="local.zarr", progress=False)
drawn = vp.plot.heatmap(ds, "logit_difference", normalize=True)

# %% [markdown]
# And a store that is complete needs nobody. Asked for on the server that is not there, it is opened, and that is all:

# %%
again = vp.run(experiment, backend="ndif", host=NOBODY, store="local.zarr", progress=False)
print(again.equals(ds), again.attrs["backend"])

# %% [markdown]
# - [On an NDIF server](../remote.md): what goes wrong and what is then done, what a sandbox refuses, what goes over the
#   wire.
# - [Sharing](06_sharing.md): a bundle is replayed on a server, too.
