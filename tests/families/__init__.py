"""One file a model family: a small random model of it with its real processor, and where everything is in it, found by
reading transformers and by trying, without the package's own map."""
