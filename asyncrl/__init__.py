"""asyncrl: an asynchronous off-policy actor-learner for LLM reinforcement learning.

    dataset ─▶ ledger ──lease──▶ generator ──group──▶ replay ──batch──▶ learner ──▶ checkpoint
                 ▲                vLLM, TP k            │                FSDP2        TensorBoard
                 │                rewards               │                  │
                 └────────── admission: v, η, B ────────┘                  │
                                  ▲                                        │
                                  └───────────── publish v+1 ──────────────┘

Data flows one way; the only thing that flows back is a policy version with its weights. docs/design.md gives the
reading order. This package imports nothing by itself.
"""
