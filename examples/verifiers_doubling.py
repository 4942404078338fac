"""A taskset of the package verifiers: `asyncrl launch --config examples/verifiers_doubling.yaml`.

417+417=  824  no: 834              sampled: `824` and `834`; a wrong answer gets a second try
"""

import verifiers.v1 as vf

__all__ = ["Doubling", "TwoTries"]


class Number(vf.TaskData):
    answer: str


class Double(vf.Task[Number]):
    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        """Half for the second try: were it paid as the first, a wrong first answer would be taught as well."""
        return float((trace.last_reply or "").strip() == self.data.answer) / max(trace.num_turns, 1)


class Doubling(vf.Taskset[Double, vf.TasksetConfig]):
    """The numbers of three digits."""

    def load(self) -> list[Double]:
        return [Double(Number(prompt=f"{n}+{n}=", answer=str(2 * n)), self.config.task) for n in range(100, 1000)]


class TwoTriesConfig(vf.EnvConfig):
    agent: vf.AgentConfig = vf.AgentConfig()


class TwoTries(vf.Env[TwoTriesConfig]):
    """The agent answers; if that is wrong, once more."""

    async def run(self, task: vf.Task, agents: vf.Agents) -> None:
        async with agents.agent.interaction(task) as talk:
            first = await talk.turn()
            if first.last_reply.strip() != task.data.answer:
                await talk.turn("no:")
