"""A machine whose sshd is asyncssh: it takes signals for root, which OpenSSH refuses. Arguments: port, host key, the CA's public key."""

import asyncio
import sys

import asyncssh

PORT, HOST_KEY, CA = int(sys.argv[1]), sys.argv[2], sys.argv[3]


class Session(asyncssh.SSHServerSession):
    def connection_made(self, chan):
        self.chan = chan

    def shell_requested(self):
        return True

    def exec_requested(self, command):
        return True

    def session_started(self):
        self.chan.write("up\n")

    def signal_received(self, signal):
        self.chan.exit_with_signal(signal, False, f"ended by {signal}")

    def break_received(self, msec):
        self.chan.exit(42)
        return True


class Server(asyncssh.SSHServer):
    def session_requested(self):
        return Session()


async def main():
    with open(CA) as file:
        trusted = asyncssh.import_authorized_keys("cert-authority " + file.read())
    options = {"server_host_keys": [HOST_KEY], "authorized_client_keys": trusted, "server_factory": Server}
    await asyncssh.listen("::1", PORT, **options)
    print("listens", flush=True)
    await asyncio.get_running_loop().create_future()


asyncio.run(main())
