#!/usr/bin/env python3
"""Clients that curl is not: a WebSocket, and a gRPC stream.

    web.py websocket wss://NAME/socket CA_FILE   sends numbers until its standard input ends, wants each back
    web.py grpc NAME:PORT CA_FILE COUNT          wants so many numbers of one call

Each prints one JSON document: {"count": …, "largest_gap_ms": …}. What comes back wrong or not at all ends it with an error.
"""
import asyncio
import json
import os
import ssl
import sys
import time


class Gaps:
    """How long nothing came, at most."""

    def __init__(self):
        self.last, self.largest, self.count = time.monotonic(), 0.0, 0

    def came(self):
        now = time.monotonic()
        if self.count:
            self.largest = max(self.largest, now - self.last)
        self.last, self.count = now, self.count + 1

    def show(self):
        print(json.dumps({"count": self.count, "largest_gap_ms": round(self.largest * 1000)}))


async def websocket(url, ca):
    import websockets

    loop, gaps = asyncio.get_running_loop(), Gaps()
    ended = loop.run_in_executor(None, sys.stdin.read)
    context = ssl.create_default_context(cafile=ca)
    async with websockets.connect(url, ssl=context, open_timeout=30, ping_timeout=60) as socket:
        while not ended.done():
            await socket.send(str(gaps.count))
            answer = await asyncio.wait_for(socket.recv(), 60)
            if answer != str(gaps.count):
                raise SystemExit(f"sent {gaps.count}, got {answer!r}")
            gaps.came()
            await asyncio.sleep(0.05)
    gaps.show()


def grpc_stream(target, ca, wanted):
    os.environ.setdefault("GRPC_DNS_RESOLVER", "native")
    import grpc

    gaps = Gaps()
    with open(ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    with grpc.secure_channel(target, credentials) as channel:
        call = channel.unary_stream("/echo.Echo/Count", lambda number: str(number).encode(), lambda text: int(text))
        for answer in call(wanted, timeout=600, wait_for_ready=True):
            gaps.came()
            if answer != gaps.count:
                raise SystemExit(f"message {gaps.count} was {answer}")
    if gaps.count != wanted:
        raise SystemExit(f"{gaps.count} messages of {wanted}")
    gaps.show()


if sys.argv[1:2] == ["websocket"] and len(sys.argv) == 4:
    asyncio.run(websocket(*sys.argv[2:]))
elif sys.argv[1:2] == ["grpc"] and len(sys.argv) == 5:
    grpc_stream(sys.argv[2], sys.argv[3], int(sys.argv[4]))
else:
    raise SystemExit(__doc__)
