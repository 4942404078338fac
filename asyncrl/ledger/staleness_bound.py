"""The staleness bound: its formula and its proof.

    v   version that every generator serves whole (the last publish that was acknowledged by all)
    η   replay.max_staleness, or less where a controller moves it (`staleness_controller.py`)
    B   prompts per step
    W   replay.window with stragglers=window, else 0: how many prompts may be trained before one drawn before them
    a   prompts drawn so far, less those dropped (quarantined, filtered or skipped): a prompt that is not trained takes
        no place

A new prompt is drawn only while a < (v + η + 1)·B − W.

Proof that no token has lag > η, with batches in admission order (W = 0) or with a window. When a prompt is drawn, a
prompts count before it, and a < (v + η + 1)·B − W. Some of these may be dropped later, but none comes back. Of those
drawn after it, at most W are trained before it. So at consumption at most a + W prompts stand before it, and step
s = ⌊position / B⌋ ≤ ⌊(a + W) / B⌋ < v + η + 1 consumes it. Generators that serve v or later sample its tokens. The lag
of a token, s − (version that sampled it), is thus at most s − v ≤ η.  ∎

That also holds for a completion that an earlier holder of the prompt had finished and replay hands on: it was sampled
after the draw.

The window costs nothing but room: W of the prompts that could be in play are not drawn. The run cannot stand still as
long as a whole batch may be drawn for each version, (v + η + 1)·B − W ≥ (v + 1)·B, hence W ≤ η·B. That no prompt is
overtaken by more than W is a matter of the oldest one that has not come back: whatever overtakes another one was drawn
after that one too (`batch_assembly.py`).

Where η moves, the proof takes the η at the moment of the draw. A token's lag is at most the η under which its prompt
was drawn, and that is at most replay.max_staleness. Raising η changes nothing for prompts already drawn. Lowering it
takes none of them back; it only stops drawing until v has caught up. That always happens, because the next B of them
make the next version. η + 1 steps after a fall from η, every batch keeps the new bound.

With batches in order of completion the number of prompts is bounded the same way, but a straggler may be overtaken.
With stragglers=mask, the learner's guard masks and counts its tokens over the bound. With requeue, such a prompt is not
put into a batch; generators that serve v or later sample it again, and this counts as no failure.
"""

from __future__ import annotations


def admission_limit(version: int, max_staleness: int, batch_size: int, window: int = 0) -> int:
    """(v + η + 1)·B − W: how many prompts may have been drawn and not dropped while `version` is served."""
    return (version + max_staleness + 1) * batch_size - window
