"""What stands in front of a PostgreSQL server: TLS, which the wheel's own lacks, or a pooler.

``python -m tests.front PORT [CERTIFICATE]`` prints its own port. It is a process apart: libpq lets
no other thread of a process run while it connects.
"""

from __future__ import annotations

import re
import select
import socket
import socketserver
import ssl
import sys

PID = re.compile(rb"(?s)K\0\0\0\x0c....")  # the message that tells a client its server's pid


class Front(socketserver.ThreadingTCPServer):
    """TLS where it has a certificate; else a pooler, which tells another pid than the server's."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, port: int, certificate: str) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.behind = port
        self.context = None
        if certificate:
            self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.context.load_cert_chain(certificate)


class Relay(socketserver.BaseRequestHandler):
    """One connection through a Front."""

    server: Front

    def handle(self) -> None:
        near: socket.socket = self.request
        with socket.create_connection(("127.0.0.1", self.server.behind)) as far:
            if self.server.context:
                near.recv(8, socket.MSG_WAITALL)  # SSLRequest
                near.sendall(b"S")
                try:
                    near = self.server.context.wrap_socket(near, server_side=True)
                except OSError:
                    return  # who calls does not like the certificate
            with near:
                while True:
                    for one in select.select([near, far], [], [])[0]:
                        data = one.recv(1 << 16)
                        if not data:
                            return
                        if one is far and not self.server.context:
                            data = PID.sub(b"K\0\0\0\x0c\0\0\0\x01", data)
                        (far if one is near else near).sendall(data)


if __name__ == "__main__":
    with Front(int(sys.argv[1]), "".join(sys.argv[2:])) as front:
        sys.stdout.write(f"{front.server_address[1]}\n")
        sys.stdout.flush()
        front.serve_forever()
