"""The decoder that only takes its time."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from bench.standin.timed_decoder import TimedDecoder

LENGTHS = [np.asarray([40, 3], np.int32), np.asarray([7, 25], np.int32)]


def test_tokens_after_a_switch_carry_the_new_version_and_none_is_sampled_while_paused() -> None:
    versions = asyncio.run(_decode_across_a_switch())
    assert [len(one) for one in versions] == [40, 25]
    assert all((np.diff(one) >= 0).all() for one in versions)
    assert set(versions[0].tolist()) == {3, 4}
    assert (versions[1] == versions[0][:25]).all()  # both groups advance together


async def _decode_across_a_switch() -> list[NDArray[np.int32]]:
    decoder = TimedDecoder(lambda num_running: 0.002 + 0.0005 * num_running)
    decoder.resume(3)
    decoded = asyncio.gather(*map(decoder.decode, LENGTHS))
    while not any(group.versions for group in decoder._groups):
        await asyncio.sleep(0)
    await decoder.pause()
    await asyncio.sleep(0.2)
    assert not decoded.done()
    decoder.resume(4)
    return await asyncio.wait_for(decoded, 60)
