"""A process between clients and a server on this machine that hands bytes on: `python front.py PORT OF_THE_SERVER`.

Killed, it ends every connection wherever that is, amid a request or its answer, and nothing listens until it is started again.
What the server has stored stays, and what reached it takes effect.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator


class Front:
    """Runs it, on a port that stays the same."""

    def __init__(self, behind: int):
        self.port, self.behind = 0, behind
        self.start()

    def start(self) -> None:
        command = [sys.executable, __file__, str(self.port), str(self.behind)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()  # SIGKILL
        self.process.communicate()


@contextlib.contextmanager
def front(behind: int) -> Iterator[Front]:
    made = Front(behind)
    try:
        yield made
    finally:
        made.kill()


async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def _serve(port: int, behind: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inside, outside = await asyncio.open_connection("127.0.0.1", behind)
        await asyncio.gather(_hand_on(reader, outside), _hand_on(inside, writer), return_exceptions=True)

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
