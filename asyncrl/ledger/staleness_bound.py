"""The staleness bound: its formula and its proof.

    v   version that every generator serves whole (the last publish that was acknowledged by all)
    η   replay.max_staleness, or less where a controller moves it (`staleness_controller.py`)
    B   prompts per step
    a   prompts drawn so far, less those dropped (quarantined or filtered): a prompt that is not trained takes no place

A new prompt is drawn only while a < (v + η + 1)·B.

Proof that with batches in admission order no token has lag > η. When a prompt is drawn, a prompts count before it, and
a < (v + η + 1)·B. Some of these may be dropped later, but none comes back. So at consumption at most a prompts stand
before it, and step s = ⌊position / B⌋ ≤ ⌊a / B⌋ < v + η + 1 consumes it. Generators that serve v or later sample its
tokens. The lag of a token, s − (version that sampled it), is thus at most s − v ≤ η.  ∎

Where η moves, the proof takes the η at the moment of the draw. A token's lag is at most the η under which its prompt
was drawn, and that is at most replay.max_staleness. Raising η changes nothing for prompts already drawn. Lowering it
takes none of them back; it only stops drawing until v has caught up. That always happens, because the next B of them
make the next version. η + 1 steps after a fall from η, every batch keeps the new bound.

With batches in order of completion the number of prompts is bounded the same way, but a straggler may be overtaken.
With stragglers=mask, the learner's guard masks and counts its tokens over the bound. With requeue, such a prompt is not
put into a batch; generators that serve v or later sample it again, and this counts as no failure.
"""

from __future__ import annotations


def admission_limit(version: int, max_staleness: int, batch_size: int) -> int:
    """(v + η + 1)·B: how many prompts may have been drawn and not dropped while `version` is served."""
    return (version + max_staleness + 1) * batch_size
