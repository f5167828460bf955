"""Signals from asyncssh to a machine that takes them, through the gateway. Arguments: port, key."""

import asyncio
import sys

import asyncssh


async def main():
    options = {"username": "web", "client_keys": [sys.argv[2]], "known_hosts": None, "agent_path": None, "config": None}
    async with asyncssh.connect("127.0.0.1", int(sys.argv[1]), **options) as conn:
        for name in ("TERM", "INT", "HUP", "KILL", "USR1"):
            process = await conn.create_process("anything")
            assert await process.stdout.readline() == "up\n"
            process.send_signal(name)
            done = await process.wait()
            assert done.exit_signal == (name, False, f"ended by {name}", "en-US"), (name, done.exit_signal)


asyncio.run(asyncio.wait_for(main(), 30))
print("passed")
