"""The staleness bound: its formula and its proof.

    v   version that every generator serves whole (the last publish that was acknowledged by all)
    η   replay.max_staleness, or less where a controller moves it (`controller.py`)
    B   prompts per step
    a   prompts drawn so far, less those dropped (quarantined or filtered): a prompt that is not trained takes no place

A new prompt is drawn only while a < (v + η + 1)·B.

Proof that with batches in admission order no token has lag > η. Let a prompt be drawn when a of the prompts before it
still count, so a < (v + η + 1)·B. Prompts before it may still be dropped, never come back, so at consumption at most a
prompts stand before it, and step s = ⌊position / B⌋ ≤ ⌊a / B⌋ < v + η + 1 consumes it. Its tokens are sampled by
generators that serve v or later. The lag of a token, s − (version that sampled it), is thus at most s − v ≤ η.  ∎

Where η moves, it is in the proof the η of the moment of the draw: the lag of a prompt's tokens is at most the η under
which the prompt was drawn, and that is at most replay.max_staleness. A rise changes nothing for prompts already drawn.
A fall takes none of them back; it only stops drawing until v has caught up, which always comes, since the next B of
them make the next version. η + 1 steps after a fall from η, every batch holds to the new bound.

With batches in order of completion the count of prompts is bounded the same way, but a straggler may be overtaken. With
stragglers=mask the learner's guard then masks its tokens that are over the bound, and counts them; with requeue such a
prompt is not taken but sampled again, by generators that serve v or later, as if it had failed without its fault.
"""

from __future__ import annotations


def admission_limit(version: int, max_staleness: int, batch_size: int) -> int:
    """(v + η + 1)·B: how many prompts may have been drawn and not dropped while `version` is served."""
    return (version + max_staleness + 1) * batch_size
