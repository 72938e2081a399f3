"""`Server`: a model behind HTTP, until it is stopped."""

import socket

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from moesaic.errors import RequestError
from moesaic.serve.app import make_app
from moesaic.serve.connection import telling_of_requests, watched
from moesaic.serve.served import Served


def open_port(host: str, port: int) -> socket.socket:
    """A port, at which nobody listens yet.

    Raises:
        RequestError: if it is taken, or none of this machine.
    """
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        opened.close()
        reason = getattr(error, "strerror", None) or error
        raise RequestError(
            f"port {port} of {host} cannot be had ({reason}); give another with --port, or 0 for "
            "any, and with --host an address of this machine"
        ) from None
    return opened


class Server:
    """A model that answers on a port."""

    def __init__(self, served: Served, host: str, port: int) -> None:
        """Open the port; nothing is answered before `run`.

        Raises:
            RequestError: if the port is taken.
        """
        self.served, closing_s = served, served.config.closing_s
        settings = uvicorn.Config(
            telling_of_requests(make_app(served)),
            host,
            port,
            http=watched(AutoHTTPProtocol, served.config),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=max(1, round(closing_s)),
        )
        self._server = uvicorn.Server(settings)
        self._socket = open_port(host, port)
        self._socket.listen(settings.backlog)  # who comes before `run` waits
        bound, number = self._socket.getsockname()[:2]
        self.address = f"http://{f'[{bound}]' if ':' in bound else bound}:{number}"

    def run(self) -> None:
        """Answer until `stop`, or a signal; running requests may end in ``closing_s``."""
        try:
            self._server.run([self._socket])
        finally:
            self._socket.close()
            self.served.engine.close(0)

    def stop(self) -> None:
        """End `run`; any thread may."""
        self._server.should_exit = True
