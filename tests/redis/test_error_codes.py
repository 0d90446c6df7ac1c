"""The code of an error is the same on each server, also where it is wrapped: that of a script, that in a pipeline."""

from typing import Any

import pytest
from redis.exceptions import ResponseError

from supervisor.broker.redis_errors import code_of, is_transient, permanent_cause

FAILING = {
    "NOGROUP": "return redis.call('XPENDING', 'stream', 'missing')",
    "WRONGTYPE": "return redis.call('XLEN', 'text')",
    "BUSYGROUP": "return redis.call('XGROUP', 'CREATE', 'stream', 'group', '0')",
    "OOM": "return redis.call('SET', 'other', '1')",
}


@pytest.mark.parametrize("code", FAILING)
async def test_errors_of_scripts(every_server: Any, code: str) -> None:
    async with every_server.client() as redis:
        await redis.set("text", "")
        await redis.xgroup_create("stream", "group", mkstream=True)
        if code == "OOM":
            await redis.config_set("maxmemory", 1)
        with pytest.raises(ResponseError) as caught:
            await redis.eval(FAILING[code], 0)
        assert code_of(caught.value) == code and not is_transient(caught.value)


async def test_errors_in_a_pipeline(every_server: Any) -> None:
    async with every_server.client() as redis:
        await redis.set("text", "")
        pipe = redis.pipeline(transaction=False)
        pipe.xlen("text").eval(FAILING["WRONGTYPE"], 0)
        with pytest.raises(ResponseError) as caught:
            await pipe.execute()
        assert code_of(caught.value) == "WRONGTYPE"


@pytest.mark.parametrize("refused", ["redis.call('XADD', 'stream', '*', 'n', '1')", "redis.call('GET', 'other')"])
async def test_a_right_that_a_script_lacks(every_server: Any, refused: str) -> None:
    async with every_server.client() as redis:
        await redis.acl_setuser("limited", enabled=True, passwords=["+x"], keys=["stream"], commands=["+@all", "-xadd"])
        async with every_server.client(username="limited", password="x") as limited:
            with pytest.raises(ResponseError) as caught:
                await limited.eval(f"return {refused}", 0)
    assert code_of(caught.value) == "NOPERM"
    assert "README.md lists the rights" in permanent_cause(caught.value)
