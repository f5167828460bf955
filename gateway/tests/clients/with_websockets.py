"""websockets, the library that most Python programs use: text, binary, ping and a clean close through the edge."""

import asyncio
import ssl
import sys

import websockets

host, port = sys.argv[1].rsplit(":", 1)
trust = ssl.create_default_context(cafile=sys.argv[2])


async def main():
    where = {"host": host, "port": int(port), "server_hostname": "ws.mashine.dev", "ssl": trust, "proxy": None}
    async with websockets.connect("wss://ws.mashine.dev/chat", **where) as socket:
        for message in ["text", b"\0binary", "x" * 500_000]:
            await socket.send(message)
            assert await socket.recv() == message
        await (await socket.ping())
    assert socket.close_code == 1000, socket.close_code


asyncio.run(main())
print("passed")
