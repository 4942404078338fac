"""The section `lora`: adapters instead of all weights."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685; the extra `lora`): a linear layer computes with W + alpha/rank · B·A,
    and only A and B are trained (docs/lora.md)."""

    rank: int | None = None
    """r: A is [r, in], B is [out, r]. null = every weight of the model is trained."""
    alpha: float | None = None
    """alpha/rank scales an adapter; null = 2 · rank."""
    targets: list[str] = field(default_factory=list)
    """The linear layers that get one, by the last part of their names, such as [q_proj, v_proj]; empty = all of the
    decoder's. Experts, routers, embeddings and the output head never do."""
    publish_dtype: str = "auto"
    """The type in which A and B travel with publish.engine=adapter: auto (the compute type, in which the learner
    computes with them) | bfloat16 (half the bytes of float32; what samples is rounded, and what trains is not)."""

    @property
    def scale(self) -> float:
        assert self.rank is not None, "asked for the scale of no adapter"
        return 2.0 if self.alpha is None else self.alpha / self.rank
