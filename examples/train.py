"""The tiny model learns addition from a reward of one's own, on a CPU: python examples/train.py [key=value …]"""

import sys

import asyncrl


def near(prompt: str, completion: str, answer: str) -> float:  # 1 for the right number, less the further off it is
    return 1 / (1 + abs(int(completion) - int(answer))) if completion.isdigit() else 0.0


if __name__ == "__main__":
    keys = ["model.path=tiny", "data.train=arithmetic", "data.max_prompt_tokens=8", "generator.max_tokens=6"]
    run = asyncrl.launch([*keys, "learner.lr=3e-4", "run.steps=100", *sys.argv[1:]], rewards=[near])
    print(run.metrics().select(["step", "reward/mean", "reward/accuracy"]).to_pylist()[-3:])
