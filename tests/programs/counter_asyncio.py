"""A counter on asyncio streams: python3 counter_asyncio.py PORT. `/slow` sleeps 5 ms, `/thread` asks a thread pool."""

import asyncio
import sys

count = 0


async def body_for(path: str) -> str:
    if path == "/slow":
        await asyncio.sleep(0.005)
    if path == "/thread":
        return f"{count} {await asyncio.to_thread(sum, range(1000))}\n"
    return f"{count}\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    global count
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            count += 1
            body = await body_for(head.split(" ")[1])
            close = "connection: close" in head.lower()
            extra = "Connection: close\r\n" if close else ""
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{extra}\r\n{body}".encode())
            await writer.drain()
            if close:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "0.0.0.0", int(sys.argv[1]), backlog=128)
    await server.serve_forever()


asyncio.run(main())
