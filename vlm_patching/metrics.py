"""What is measured at the read-out position, or over whole answers: one table, all computed in float32.

Each function takes ``logits [row, vocabulary]``, the first tokens ``answer`` and ``foil`` (integers) and the clean
run's ``clean [1, vocabulary]`` logits, and gives ``[row]``. A metric is added by adding a function and its row in
`METRICS`. Only tensors' own methods and plain dicts are used, so that the table can be read without torch and shipped
to a remote model.
"""

from typing import Any


def probability(logits: Any, answer: int, foil: int, clean: Any) -> Any:
    """p(answer), in [0, 1]."""
    return logits.float().softmax(-1)[:, answer]


def log_probability(logits: Any, answer: int, foil: int, clean: Any) -> Any:
    """Natural logarithm of p(answer)."""
    return logits.float().log_softmax(-1)[:, answer]


def logit_difference(logits: Any, answer: int, foil: int, clean: Any) -> Any:
    """LD = logit(answer) - logit(foil); positive where the model prefers the answer."""
    logits = logits.float()
    return logits[:, answer] - logits[:, foil]


def kl_divergence(logits: Any, answer: int, foil: int, clean: Any) -> Any:
    """KL(clean || this run) over the vocabulary, in nats; 0 for the clean run itself."""
    wanted, found = clean.float().log_softmax(-1), logits.float().log_softmax(-1)
    return (wanted.exp() * (wanted - found)).sum(-1)


def answer_rank(logits: Any, answer: int, foil: int, clean: Any) -> Any:
    """1 + the number of tokens that are likelier than the answer: 1 is best."""
    return 1.0 + (logits > logits[:, answer : answer + 1]).sum(-1).float()


def top1_accuracy(logits: Any, answer: int, foil: int, clean: Any) -> Any:
    """1 where no token is likelier than the answer, else 0."""
    return (answer_rank(logits, answer, foil, clean) <= 1).float()


def top5_accuracy(logits: Any, answer: int, foil: int, clean: Any) -> Any:
    """1 where the answer is among the five likeliest tokens, else 0."""
    return (answer_rank(logits, answer, foil, clean) <= 5).float()


def answer_log_probability(scores: Any) -> Any:
    """Natural logarithm of p(the whole answer): summed over its tokens, each given those before it."""
    return scores[:, 0]


def answer_log_odds(scores: Any) -> Any:
    """Log-probability of the whole answer minus that of the whole foil."""
    return scores[:, 0] - scores[:, 1]


def answer_ranking(scores: Any) -> Any:
    """1 + the number of candidates whose whole log-probability is larger than the answer's: 1 is best."""
    return 1.0 + (scores > scores[:, :1]).sum(-1).float()


METRICS: dict[str, dict[str, Any]] = {
    "probability": {"of": probability, "label": "probability of the answer", "unit": "", "better": 1, "least": 0.01},
    "log_probability": {
        "of": log_probability,
        "label": "log-probability of the answer",
        "unit": "nats",
        "better": 1,
        "least": 0.05,
    },
    "logit_difference": {
        "of": logit_difference,
        "label": "logit difference, answer - foil",
        "unit": "logits",
        "better": 1,
        "least": 0.05,
    },
    "kl_divergence": {
        "of": kl_divergence,
        "label": "KL divergence to the clean run",
        "unit": "nats",
        "better": -1,
        "least": 0.05,
    },
    "answer_rank": {
        "of": answer_rank,
        "label": "rank of the answer",
        "unit": "",
        "better": -1,
        "least": 0.5,
        "steps": True,
    },
    "top1_accuracy": {
        "of": top1_accuracy,
        "label": "answer is likeliest",
        "unit": "",
        "better": 1,
        "least": 0.5,
        "steps": True,
    },
    "top5_accuracy": {
        "of": top5_accuracy,
        "label": "answer in the top five",
        "unit": "",
        "better": 1,
        "least": 0.5,
        "steps": True,
    },
    "answer_log_probability": {
        "of": answer_log_probability,
        "label": "log-probability of the whole answer",
        "unit": "nats",
        "better": 1,
        "least": 0.05,
        "scores": "answer",
    },
    "answer_log_odds": {
        "of": answer_log_odds,
        "label": "log-probability, answer - foil",
        "unit": "nats",
        "better": 1,
        "least": 0.05,
        "scores": "answer and foil",
    },
    "answer_ranking": {
        "of": answer_ranking,
        "label": "rank of the answer among the candidates",
        "unit": "",
        "better": -1,
        "least": 0.5,
        "steps": True,
        "scores": "all",
    },
}
"""Name → `of` the function; `label` on figures, and its `unit`; `better` 1 where more is better, -1 where less is;
`least` total effect that effects are normalised by; `steps` where it jumps, so that rounding can change it; `scores`
where it is of whole answers under teacher forcing, and of which: those functions take ``scores [row, candidate]``,
summed log-probabilities of the answer, the foil, and the other candidates (the answers and foils of all pairs)."""
