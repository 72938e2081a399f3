"""Hundreds of clients at once: readers that are slow, that go away, that ask for nonsense."""

import asyncio
from random import Random

import httpx
import openai
import pytest
from served import N_BLOCKS, NAME, served

from moesaic.data.tokenizer import Tokenizer
from moesaic.model.transformer import Transformer

N_CLIENTS = 240
PROMPTS = ["To be", "First Citizen: we are", "You are all resolved rather to die", "a" * 70]


async def ask(
    client: openai.AsyncOpenAI, plain: httpx.AsyncClient, place: int, expected: list[str]
) -> str:
    """What one client sees; which kind of client it is follows from its place."""
    random = Random(place)
    await asyncio.sleep(random.random())
    which = place % len(PROMPTS)
    if place % 6 == 5:
        answer = await plain.post("/chat/completions", content=random.randbytes(50))
        return str(answer.status_code)
    stream = await client.completions.create(
        model=NAME, prompt=PROMPTS[which], max_tokens=20, temperature=0, stream=True
    )
    text = ""
    async for event in stream:
        text += event.choices[0].text
        if place % 6 == 4:
            await stream.close()
            return "left"
        await asyncio.sleep(random.random() * 0.02 if place % 6 == 3 else 0)
    return "right" if text == expected[which] else text


@pytest.mark.slow
def test_nobody_gets_a_wrong_answer_and_nothing_is_left_over(
    model: Transformer, tokenizer: Tokenizer
):
    async def ask_all(address: str) -> list[str]:
        url, limits = f"{address}/v1", httpx.Limits(max_connections=N_CLIENTS)
        async with (
            httpx.AsyncClient(base_url=url, limits=limits, timeout=300) as plain,
            openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0, timeout=300) as client,
        ):
            expected = []
            for prompt in PROMPTS:
                answer = await client.completions.create(
                    model=NAME, prompt=prompt, max_tokens=20, temperature=0
                )
                expected.append(answer.choices[0].text)
            return await asyncio.gather(
                *(ask(client, plain, place, expected) for place in range(N_CLIENTS))
            )

    with served(model, tokenizer, max_queue=N_CLIENTS, max_running=24) as server:
        seen = asyncio.run(ask_all(server.address))
        engine = server.served.engine
    share = N_CLIENTS // 6
    assert {what: seen.count(what) for what in set(seen)} == {
        "right": 4 * share,
        "left": share,
        "400": share,
    }
    stats = engine.stats()
    assert (stats.waiting, stats.running, stats.blocks_free) == (0, 0, N_BLOCKS)
