"""A server that answers with what it is told: what stands behind a proxy under test."""

import socket
import threading


class Echo:
    """Answers all that it reads, and says `bye` to a client that ends its requests. `heard` is what came, of all clients.

    `ended` says of each connection that is over whether it came to its end or was reset.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.heard = b""
        self.ended: list[str] = []
        self._closing = False
        self._listener, self._threads = listener, [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._closing:
                client.close()
                return
            self._threads.append(threading.Thread(target=self._serve, args=(client,)))
            self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                while data := client.recv(65536):
                    self.heard += data
                    client.sendall(data)
                client.sendall(b"bye")
                self.ended.append("end")
            except ConnectionError:
                self.ended.append("reset")

    def close(self) -> None:
        self._closing = True
        with socket.socket(self._listener.family) as last:
            last.connect(self._listener.getsockname())
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._listener.close()
