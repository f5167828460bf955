"""What paramiko asks of a server, through the gateway. Arguments: port, key, folder, port of a server that answers what it heard."""

import os
import socket
import sys
import threading
import time

import paramiko

PORT, KEY, FOLDER, HEARD = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])


def connect(**more):
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    client.connect(
        "127.0.0.1", PORT, "web", key_filename=KEY, look_for_keys=False, allow_agent=False, **more
    )
    return client


def sessions(client):
    _, out, err = client.exec_command("echo out; echo err >&2; exit 7")
    got = (out.read(), err.read(), out.channel.recv_exit_status())
    assert got == (b"out\n", b"err\n", 7), got
    stdin, out, _ = client.exec_command("cat")
    stdin.write(b"x" * 100_000)
    stdin.channel.shutdown_write()
    assert out.read() == b"x" * 100_000
    shell = client.invoke_shell("xterm", 77, 33)
    shell.resize_pty(99, 44)
    shell.send(b"stty size; exit 5\n")
    seen = b""
    while more := shell.recv(4096):
        seen += more
    assert b"44 99" in seen, seen
    assert shell.recv_exit_status() == 5
    try:
        client.get_transport().open_session().request_x11()
    except paramiko.SSHException:
        pass
    else:
        raise AssertionError("X11 was not refused")


def parallel(client):
    wrong = []

    def one(n):
        _, out, _ = client.exec_command(f"head -c 300000 /dev/zero | wc -c; exit {n}")
        if out.read() != b"300000\n" or out.channel.recv_exit_status() != n:
            wrong.append(n)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def forwards(client):
    transport = client.get_transport()
    channel = transport.open_channel("direct-tcpip", ("localhost", HEARD), ("127.0.0.1", 0))
    channel.sendall(b"paramiko")
    channel.shutdown_write()
    answer = b""
    while more := channel.recv(4096):
        answer += more
    assert answer == b"heard paramiko", answer
    port = transport.request_port_forward("127.0.0.1", 0)
    outside = socket.create_connection(("127.0.0.1", port))
    inside = transport.accept(10)
    outside.sendall(b"in")
    assert inside.recv(2) == b"in"
    inside.sendall(b"out")
    assert outside.recv(3) == b"out"
    transport.cancel_port_forward("127.0.0.1", port)


def files():
    # A client that asks for nothing but sftp, not even through a session of its own making.
    transport = paramiko.Transport(("127.0.0.1", PORT))
    transport.connect(username="web", pkey=paramiko.Ed25519Key.from_private_key_file(KEY))
    sftp = paramiko.SFTPClient.from_transport(transport)
    data = os.urandom(6_000_000)
    with sftp.open(FOLDER + "/by-paramiko", "wb") as file:
        file.set_pipelined(True)
        file.write(data)
    with sftp.open(FOLDER + "/by-paramiko", "rb") as file:
        file.prefetch()
        assert file.read() == data
    assert "by-paramiko" in sftp.listdir(FOLDER)
    transport.close()


def rekeying():
    client = connect()
    transport = client.get_transport()
    for _ in range(4):
        transport.renegotiate_keys()
        _, out, _ = client.exec_command("echo again")
        assert out.read() == b"again\n"
        # paramiko cannot answer the close of a channel while it exchanges keys.
        time.sleep(0.3)
    client.close()


def post_quantum():
    client = connect(transport_factory=Hybrid)
    _, out, _ = client.exec_command("echo hybrid")
    assert out.read() == b"hybrid\n"
    client.close()


class Hybrid(paramiko.Transport):
    # Nothing else is offered, so that a connection is the proof.
    _preferred_kex = ("mlkem768x25519-sha256",)


client = connect()
client.get_transport().set_keepalive(1)
sessions(client)
parallel(client)
forwards(client)
client.close()
files()
rekeying()
post_quantum()
print("passed")
