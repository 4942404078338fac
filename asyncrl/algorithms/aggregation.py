"""From losses of tokens to one loss: a weight for each token, computed once for the whole mini-batch.

The loss is Σ_t weight_t · loss_t. Because the weights hold the *global* counts, the sum may be split over micro-batches
and ranks in any way and the gradient stays the same. Legend: T tokens of the mini-batch, over all ranks.
"""

from __future__ import annotations

from torch import Tensor

from asyncrl.algorithms.segments import num_segments, segment_sum


def token_mean(mask: Tensor) -> Tensor:
    """1 / (number of trained tokens): each token counts the same (DAPO, arXiv 2503.14476, eq. 8).

    Args:
        mask: [T] bool, True = trained.

    Returns:
        [T] float64 weights that sum to 1, or all 0 when no token is trained.
    """
    return mask.double() / mask.sum().clamp(min=1)


def mean_of_means(mask: Tensor, segment_ids: Tensor) -> Tensor:
    """1 / (number of segments · trained tokens of this one): each segment counts the same.

    With sequences as segments it is `sequence_mean` (GRPO, arXiv 2402.03300, eq. 3), with all tokens of a prompt's
    completions as a segment `prompt_mean` (ScaleRL, arXiv 2510.13786). A segment without a trained token is
    not counted.

    Args:
        mask: [T] bool, True = trained.
        segment_ids: [T] int64 ≥ 0.

    Returns:
        [T] float64 weights, as in `token_mean`.
    """
    num_trained = segment_sum(mask.double(), segment_ids, num_segments(segment_ids))
    present = (num_trained > 0).sum().clamp(min=1)
    return mask.double() / (num_trained.clamp(min=1)[segment_ids] * present)


def sequence_sum(mask: Tensor, segment_ids: Tensor, constant: int) -> Tensor:
    """1 / (number of sequences · constant): no normalisation by length (Dr. GRPO, arXiv 2503.20783, section 3.1).

    Arguments and result as in `mean_of_means`, but the weights sum to (mean length) / constant, > 0.
    """
    num_trained = segment_sum(mask.double(), segment_ids, num_segments(segment_ids))
    return mask.double() / ((num_trained > 0).sum().clamp(min=1) * constant)


def token_weights(name: str, mask: Tensor, sequence_ids: Tensor, prompt_ids: Tensor, constant: int) -> Tensor:
    """[T] by `algorithm.aggregation`; `sequence_ids` and `prompt_ids` are [T], the rest as in `sequence_sum`."""
    if name == "token_mean":
        return token_mean(mask)
    if name == "sequence_mean":
        return mean_of_means(mask, sequence_ids)
    if name == "prompt_mean":
        return mean_of_means(mask, prompt_ids)
    assert name == "sequence_sum", f"algorithm.aggregation={name!r} passed the config checks"
    return sequence_sum(mask, sequence_ids, constant)
