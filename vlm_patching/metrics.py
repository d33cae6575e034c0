"""What is measured at the read-out position: one table, all computed in float32.

Each function takes ``logits [row, vocabulary]`` and the first tokens ``answer`` and ``foil`` (integers) and gives ``[row]``.
A metric is added by adding a function and its row in `METRICS`. Torch only, so that it can be shipped to a remote model.
"""

import torch


def probability(logits, answer, foil):
    """p(answer), in [0, 1]."""
    return torch.softmax(logits.float(), -1)[:, answer]


def log_probability(logits, answer, foil):
    """Natural logarithm of p(answer)."""
    return torch.log_softmax(logits.float(), -1)[:, answer]


def logit_difference(logits, answer, foil):
    """LD = logit(answer) - logit(foil); positive where the model prefers the answer."""
    logits = logits.float()
    return logits[:, answer] - logits[:, foil]


METRICS = {
    "probability": probability,
    "log_probability": log_probability,
    "logit_difference": logit_difference,
}
