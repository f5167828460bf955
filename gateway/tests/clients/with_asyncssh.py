"""What asyncssh asks of a server, through the gateway. Arguments: port, key, folder, port of a server that answers what it heard."""

import asyncio
import os
import sys

import asyncssh

PORT, KEY, FOLDER, HEARD = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])


def connect(**more):
    options = {
        "username": "web",
        "client_keys": [KEY],
        "known_hosts": None,
        "agent_path": None,
        "config": None,
        "keepalive_interval": 1,
    }
    return asyncssh.connect("127.0.0.1", PORT, **{**options, **more})


async def heard(reader, writer, word):
    writer.write(word.encode())
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    assert answer == b"heard " + word.encode(), answer


async def answer(reader, writer):
    said = await reader.read()
    writer.write(b"answer to " + said)
    writer.close()


async def asked(reader, writer):
    writer.write(b"x")
    writer.write_eof()
    assert await reader.read() == b"answer to x"
    writer.close()


async def sessions(conn):
    done = await conn.run("echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.exit_status) == ("out\n", "err\n", 7), done
    done = await conn.run("echo $LC_WORD", env={"LC_WORD": "blue"})
    assert done.stdout == "blue\n", done
    done = await conn.run("kill -KILL $$")
    assert done.exit_signal[0] == "KILL", done.exit_signal
    many = await asyncio.gather(*(conn.run(f"cat; exit {n}", input=str(n) * 1000) for n in range(40)))
    assert [m.exit_status for m in many] == list(range(40)), [(m.exit_status, m.exit_signal, m.stderr) for m in many]
    assert all(m.stdout == str(n) * 1000 for n, m in enumerate(many))


async def terminal(conn):
    script = "trap 'stty size; exit 9' WINCH; stty size; while :; do sleep 0.1; done"
    process = await conn.create_process(script, term_type="xterm-256color", term_size=(80, 24))
    assert (await process.stdout.readline()).strip() == "24 80"
    process.change_terminal_size(132, 43)
    assert (await process.stdout.readline()).strip() == "43 132"
    assert (await process.wait()).exit_status == 9
    # A request that nothing here serves: answered, not ignored, or the client would wait for ever.
    process = await conn.create_process("cat", term_type="dumb", request_pty=True)
    process.send_break(100)
    process.stdin.write("still here\n")
    assert "still here" in await process.stdout.readline()
    process.close()


async def x11(conn):
    try:
        await conn.create_process("true", x11_forwarding=True, x11_display="127.0.0.1:77")
    except asyncssh.ChannelOpenError as error:
        assert "X11" in str(error), error
    else:
        raise AssertionError("X11 was not refused")


async def forwards(conn):
    await asyncio.gather(*(tcp(conn, n) for n in range(30)))
    await heard(*await conn.open_unix_connection(FOLDER + "/heard"), "unix")
    listener = await conn.start_server(lambda *_: answer, "127.0.0.1", 0)
    await asyncio.gather(*(asked_at(listener.get_port()) for _ in range(20)))
    listener.close()
    there = FOLDER + "/listens"
    listener = await conn.start_unix_server(lambda *_: answer, there)
    for _ in range(5):
        await asked(*await asyncio.open_unix_connection(there))
    listener.close()


async def tcp(conn, n):
    await heard(*await conn.open_connection("localhost", HEARD), str(n))


async def asked_at(port):
    await asked(*await asyncio.open_connection("127.0.0.1", port))


async def files(conn):
    async with conn.start_sftp_client() as sftp:
        data = os.urandom(4_000_000)
        async with sftp.open(FOLDER + "/by-asyncssh", "wb") as file:
            await file.write(data)
        assert await sftp.getsize(FOLDER + "/by-asyncssh") == len(data)
        async with sftp.open(FOLDER + "/by-asyncssh", "rb") as file:
            assert await file.read() == data
        await sftp.rename(FOLDER + "/by-asyncssh", FOLDER + "/renamed")
        assert "renamed" in await sftp.listdir(FOLDER)


async def rekeying():
    data = os.urandom(12_000_000)
    for kex in ("mlkem768x25519-sha256", "curve25519-sha256"):
        async with connect(rekey_bytes=2_000_000, kex_algs=[kex]) as conn:
            done = await conn.run("cat", input=data, encoding=None)
            assert done.stdout == data, kex


async def main():
    async with connect() as conn:
        await sessions(conn)
        await terminal(conn)
        await x11(conn)
        await forwards(conn)
        await files(conn)
    await rekeying()


asyncio.run(asyncio.wait_for(main(), 55))
print("passed")
