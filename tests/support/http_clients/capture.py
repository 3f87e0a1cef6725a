"""Write down what an HTTP client sends, byte by byte: `python -m tests.support.http_clients.capture FILE COMMAND …`.

Listens on a port of loopback, runs the command with `{url}` replaced by its address, answers each request as a server
would that ignores every offer, and writes what came to FILE. The key of the commands is KEY; the tests put theirs in.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

PORT = 18080  # fixed, so that Host has the same length in every capture


def captured(command: list[str]) -> bytes:
    received = list[bytes]()
    with socket.create_server(("127.0.0.1", PORT)) as listener:
        listener.settimeout(60)
        thread = threading.Thread(target=_answer, args=(listener, received), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{PORT}"
        subprocess.run([word.replace("{url}", url) for word in command], check=True, stdout=subprocess.DEVNULL)
        thread.join(10)
    return b"".join(received)


def _answer(listener: socket.socket, received: list[bytes]) -> None:
    connection, _ = listener.accept()
    with connection:
        while not _whole(b"".join(received)):
            received.append(connection.recv(1 << 16))
        body = json.dumps({"object": "text_completion"}).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(body) + body)


def _whole(sent: bytes) -> bool:
    head, found, body = sent.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    chunked = re.search(rb"(?i)\r\ntransfer-encoding: chunked", head)
    return bool(found) and (body.endswith(b"0\r\n\r\n") if chunked else len(body) >= int(length[1] if length else 0))


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(captured(sys.argv[2:]))
