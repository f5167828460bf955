#!/usr/bin/env python3
"""Clients that curl is not: a WebSocket, a gRPC stream, a download that is looked at as it comes.

    web.py websocket wss://NAME/socket CA_FILE   sends numbers, wants each back
    web.py grpc NAME:PORT CA_FILE                wants the numbers of one call, one after another
    web.py download https://NAME/bytes/N CA_FILE wants known bytes

Each goes on until its standard input ends and then prints one JSON document: {"count": …, "largest_gap_ms": …}. What comes back wrong,
and an end that nobody asked for, is an error.
"""
import asyncio
import json
import os
import ssl
import sys
import threading
import time
import urllib.request


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


def ended():
    """Set when the standard input ends."""
    event = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), event.set()), daemon=True).start()
    return event


def grpc_stream(target, ca):
    os.environ.setdefault("GRPC_DNS_RESOLVER", "native")
    import grpc

    gaps, end = Gaps(), ended()
    with open(ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    with grpc.secure_channel(target, credentials) as channel:
        call = channel.unary_stream("/echo.Echo/Count", lambda number: str(number).encode(), lambda text: int(text))
        answers = call(1_000_000, wait_for_ready=True)
        for answer in answers:
            gaps.came()
            if answer != gaps.count:
                raise SystemExit(f"message {gaps.count} was {answer}")
            if end.is_set():
                answers.cancel()
                return gaps.show()
    raise SystemExit(f"the call ended after {gaps.count} messages")


def download(url, ca):
    gaps, end = Gaps(), ended()
    piece = bytes(n % 251 for n in range(65536))
    with urllib.request.urlopen(url, context=ssl.create_default_context(cafile=ca), timeout=60) as answer:
        while True:
            came = answer.read(len(piece))
            if came != piece:
                raise SystemExit(f"piece {gaps.count} came otherwise, {len(came)} bytes of it")
            gaps.came()
            if end.is_set():
                return gaps.show()


commands = {"websocket": lambda url, ca: asyncio.run(websocket(url, ca)), "grpc": grpc_stream, "download": download}
if len(sys.argv) != 4 or sys.argv[1] not in commands:
    raise SystemExit(__doc__)
commands[sys.argv[1]](*sys.argv[2:])
