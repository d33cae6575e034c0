"""What is measured at the read-out position: one table, all computed in float32.

Each function takes ``logits [row, vocabulary]`` and the first tokens ``answer`` and ``foil`` (integers) and gives
``[row]``. A metric is added by adding a function and its row in `METRICS`. Only tensors' own methods are used, so that
the table can be read without torch and shipped to a remote model.
"""

from typing import Any


def probability(logits: Any, answer: int, foil: int) -> Any:
    """p(answer), in [0, 1]."""
    return logits.float().softmax(-1)[:, answer]


def log_probability(logits: Any, answer: int, foil: int) -> Any:
    """Natural logarithm of p(answer)."""
    return logits.float().log_softmax(-1)[:, answer]


def logit_difference(logits: Any, answer: int, foil: int) -> Any:
    """LD = logit(answer) - logit(foil); positive where the model prefers the answer."""
    logits = logits.float()
    return logits[:, answer] - logits[:, foil]


METRICS = {
    "probability": probability,
    "log_probability": log_probability,
    "logit_difference": logit_difference,
}
