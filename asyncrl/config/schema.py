"""The configuration: every key, its default, its unit and what it means.

The sections `algorithm`, `data`, `environment` and `lora` are in files of their own beside this one. Files and
overrides are read in `config/load.py`; what one key allows another to be is checked in `config/checks/check.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.config.data import DataConfig
from asyncrl.config.environment import EnvironmentConfig
from asyncrl.config.lora import LoraConfig

CPU_KV_CACHE_BYTES = 256 * 2**20
"""On CPU vLLM would take a share of the whole machine's memory."""

VLLM = "vllm"
SGLANG = "sglang"


@dataclass
class ModelConfig:
    """The policy that is trained."""

    path: str = "???"
    """A local Hugging Face folder or a hub name. `tiny` makes a small Qwen3 and its tokenizer on the spot."""
    dtype: str = "auto"
    """Compute type: float32 | bfloat16 | auto (bfloat16 on GPU, float32 on CPU). Master weights are always float32."""
    attention: str = "auto"
    """transformers' attn_implementation, or asyncrl_varlen (torch's own kernel for packed sequences); auto = on a GPU
    in half precision flash_attention_3 (Hopper) or _2 where it is installed, else asyncrl_varlen; otherwise sdpa."""
    float32_head: bool = False
    """With a compute type of bfloat16: logits are not rounded to it, in the learner, vLLM and SGLang. The rounding is a
    part of what learner and engine differ in."""
    trust_remote_code: bool = False
    warmup_steps: int = 300
    """Only with path=tiny: supervised steps that stand in for pretraining."""


@dataclass
class RewardTerm:
    """One reward function and its weight."""

    function: str = "numeric"
    """numeric | math | format | shaped_numeric | code | judge | module:function | path/to/file.py:function
    (imported from the config alone)."""
    weight: float = 1.0
    args: dict[str, Any] = field(default_factory=dict)
    """Of `judge` and `code` (docs/rewards.md); with a name of your own: it is a class, and its object the function."""


@dataclass
class RewardConfig:
    """reward = Σ weight · score. Accuracy is the share of completions whose *first* term scores ≥ 1."""

    terms: list[RewardTerm] = field(default_factory=lambda: [RewardTerm()])
    num_workers: int = 1
    """Processes that score, per generator."""
    time_limit_s: float = 5.0
    """For one term of one completion; a function of your own that takes longer is stopped and its completion
    quarantined, a built-in one scores 0."""
    max_failures: int = 20
    """Quarantined completions in a run before it is stopped."""


@dataclass
class GeneratorConfig:
    """The generators: inference engines that sample completions."""

    engine: str = VLLM
    """vllm | sglang | module:Class that follows `Engine` in `generate/engines/base.py` (imported from the config
    alone). Several, comma-separated: one for each generator in turn."""
    count: int = 1
    tensor_parallel: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    """Sample from the fewest tokens that have this share of the probability; below 1 it needs top_k."""
    top_k: int = -1
    """Sample from the k likeliest tokens; −1 = all. The learner's probabilities are over the same tokens. Evaluations
    sample from all."""
    max_tokens: int = 1024
    """Longest completion, in tokens; with an environment the longest episode, what the environment gives included."""
    max_groups_in_flight: int = 16
    """Leases one generator holds at once; its concurrency is this × group_size."""
    seeded_sampling: bool | None = None
    """Give each completion a seed of its own, which costs some speed; null = those of evaluations, and with
    replay.max_staleness=0 all: only then does a run repeat to the bit."""
    gpu_memory_utilization: float = 0.85
    kv_cache_bytes: int | None = None
    """KV cache size; null = by gpu_memory_utilization on GPU, 256 MiB on CPU."""
    enforce_eager: bool = False
    """No CUDA graphs. Always on on CPU."""
    keep_finished: bool | None = None
    """Keep what has ended of a group when its generator dies. It takes a request a completion, each about 0.5 ms of a
    CPU; null = when max_tokens is 256 or more. Episodes of an environment are always kept."""
    max_restarts: int = 3
    """How often a generator that died is started again while the run goes on; 0 = its death ends the run."""


@dataclass
class LearnerConfig:
    """The learners: FSDP2 ranks."""

    count: int = 1
    batch_size: int = 32
    """B: prompts per step. One step makes one version."""
    mini_batch_size: int | None = None
    """Prompts per optimizer update; null = batch_size. Must divide batch_size."""
    epochs_per_batch: int = 1
    """Passes over each batch; every one makes batch_size / mini_batch_size updates."""
    micro_batch_tokens: int | None = 8192
    """Padded (CPU) or packed (GPU) tokens of one forward-backward on one rank; null = as many as the rank's memory
    holds by the estimate that `asyncrl check` prints."""
    context_parallel: int = 1
    """C: ranks that compute each row of tokens together, each 1/C of it, and of attention's heads. For sequences that
    one rank has no memory for; it divides count and the model's KV heads. Rows are packed then, by asyncrl_varlen."""
    lr: float = 1e-6
    warmup_steps: int = 0
    """Steps over which the rate rises linearly to lr."""
    schedule: str = "constant"
    """After the warm-up: constant | linear | cosine (these two fall so that they would be 0 after the last update)."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    """Compute each decoder layer again in the backward pass: less memory for the activations, a third more work."""
    checkpointing_keeps: str = "nothing"
    """With gradient_checkpointing, what is not computed again: nothing | attention (its outputs) | matmuls (also those
    of the linear layers)."""
    compile: bool = False
    """torch.compile of each decoder layer and of what follows the output head's products (it needs a C++ compiler). The
    first steps take a minute or more longer."""
    keep_gathered: str = "nothing"
    """What each rank holds whole from one micro-batch of an update to the next: nothing (least memory) | gradients
    (reduced once an update) | all (weights too, gathered once an update)."""
    offload: bool = False
    """Keep parameters, gradients and optimizer state in CPU memory (FSDP2 CPUOffloadPolicy)."""
    offload_reference: bool = False
    """Keep the reference in CPU memory between its uses."""
    num_threads: int = 1
    """Torch threads of one rank on CPU. On a GPU with offload a rank takes its share of the node's CPUs instead."""
    max_restarts: int = 3
    """How often the learner ranks are started again, all together, after one died: from the latest checkpoint, over the
    same batches; 0 = a rank's death ends the run."""

    @property
    def known_micro_batch_tokens(self) -> int:
        assert self.micro_batch_tokens is not None, "null is resolved when a run is placed (cluster/memory_advice.py)"
        return self.micro_batch_tokens


@dataclass
class ReplayConfig:
    """Leases, the queue and the staleness bound."""

    max_staleness: int = 2
    """η: no token that is older than this many versions is trained on. 0 = the synchronous algorithm."""
    ess_target: float | None = None
    """Effective sample size (Σρ)²/(N·Σρ²) of a step's tokens that a controller holds by moving the η of admission
    between min_staleness and max_staleness; null = η stays at max_staleness."""
    min_staleness: int = 0
    """Smallest η of the controller, and the one it starts from. Only with ess_target."""
    stragglers: str = "wait"
    """wait (batches in admission order, the bound is exact) | window (the same, but up to `window` prompts may be
    trained before one that was drawn before them; the bound is as exact) | mask (batches in order of completion; tokens
    over the bound are masked and counted) | requeue (as mask, but a prompt with a token over the bound is sampled
    again)."""
    window: int = 0
    """Prompts that may overtake one. Only with stragglers=window; at most max_staleness batches of them. So many fewer
    are in flight or queued."""
    lease_timeout_s: float = 600.0
    """A lease not answered by then goes to another generator."""
    max_lease_attempts: int = 3
    """A prompt whose lease failed or expired this often is quarantined."""
    max_quarantined: int = 20
    """Quarantined prompts in a run before it is stopped."""
    port: int = 0
    """TCP port of the replay server; 0 = any free one."""
    durability: str = "full"
    """full | normal | off: what the ledger waits for before replay acknowledges a group. All survive a killed process;
    full (fsync at each commit) a loss of power too, normal all but the last commits."""
    max_restarts: int = 3
    """How often a replay process that died is started again, from the ledger; 0 = its death ends the run."""


@dataclass
class PublishConfig:
    """How new weights reach the generators."""

    engine: str = "auto"
    """What travels: broadcast (everything to each worker) | sliced (to each tensor-parallel worker its own slices) |
    delta (only what changed of them, when that is less than half; pays in bfloat16) | adapter (with lora.rank: the
    adapter alone, which each worker merges into the weights it began with) | auto (adapter where there is one, else
    sliced)."""
    transport: str = "auto"
    """How it travels: gloo (through host memory, on any machine) | nccl (from GPU to GPU; never run on GPUs so far) |
    auto (nccl where each worker has a GPU of its own, else gloo)."""
    every: int = 1
    """Steps between versions that are published; the last one always is. Above 1 every lag grows by up to every − 1."""
    kv_cache: str = "keep"
    """What in-flight requests do with the KV of the old weights: keep | recompute."""
    staged: bool = True
    """Weights travel while generation goes on, into a second copy: in the worker's GPU memory where it takes little of
    the KV cache, else in its host memory. false, when there is room in neither: generation stands still meanwhile."""
    timeout_s: float = 120.0
    """Deadline of each phase of a publish."""
    bucket_bytes: int = 33554432
    """Weights travel in buckets of about this size: while one is put in its place, the next one travels."""


@dataclass
class RunConfig:
    """How long, how often, where."""

    name: str | None = None
    """null = the config's name and the time."""
    dir: str = "runs"
    """Parent of the run directories."""
    steps: int | None = None
    """Number of steps (versions); null = from epochs."""
    epochs: int = 1
    """Passes over the training prompts; used when steps is null."""
    seed: int = 0
    save_every: int = 0
    """Steps between checkpoints; 0 = only at the end."""
    eval_every: int = 0
    """Steps between evaluations; 0 = never. When on, also before the first step and after the last."""
    eval_prompts: int | None = None
    """Prompts of one evaluation, the first of the file, in a mixture of each data set; null = all."""
    eval_samples: int = 1
    """Completions per evaluation prompt."""
    eval_temperature: float = 0.0
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Where the rows of metrics.jsonl go as well: tensorboard, wandb (the extra `wandb`; WANDB_MODE=offline needs no
    login), trackio (the extra `trackio`; a file of this machine)."""
    prometheus_port: int | None = None
    """TCP port on 127.0.0.1 where the launcher answers Prometheus (the extra `prometheus`); null = none."""
    startup_timeout_s: float = 600.0
    step_timeout_s: float = 1800.0
    """Longest wait of a learner for one batch."""
    heartbeat_timeout_s: float = 30.0
    """A role that has come up and was not heard from for this long is dead."""
    no_progress_timeout_s: float = 1800.0
    """When no group, step, publish or evaluation was finished for this long, the run ends with every role's stacks."""
    stop_timeout_s: float = 60.0
    """Longest clean stop."""


@dataclass
class ClusterConfig:
    """Where the roles run."""

    device: str = "auto"
    """cpu | gpu | auto (gpu when this machine or the Ray cluster has one)."""
    ray_address: str | None = None
    """null = a Ray of its own on this machine; `auto` or host:port = join a running cluster."""
    allow_open_ray: bool = False
    """Join a cluster that asks for no token. Whoever reaches its ports can then run code as you."""
    interface: str | None = None
    """Network interface of each node, such as `eth1` or `wg0`, that the run's sockets bind. null = the one that has the
    address by which Ray knows the node. On one machine, without `ray_address`, everything stays on loopback."""
    share_gpu: bool = False
    """Put the one generator and the one learner on the same GPU (published over gloo)."""


@dataclass
class Config:
    """Everything a run needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    run: RunConfig = field(default_factory=RunConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def least_micro_batch_tokens(self) -> int:
        """What one rank holds of the longest sequence, which nothing but learner.context_parallel cuts."""
        return -(-(self.data.max_prompt_tokens + self.generator.max_tokens) // self.learner.context_parallel)
